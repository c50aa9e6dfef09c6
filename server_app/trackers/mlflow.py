"""MLflow: a run of an experiment, on a tracking server or in a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import MaxLen, MinLen
from typing_extensions import override

from fedrec.core.registry import MemberConfig, trackers
from fedrec.core.strict_json import json_page, parsed_object
from fedrec.core.whole_files import write_text
from server_app.trackers.base import Tracked, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEPT = "mlflow.json"
"""In the run's folder: MLflow's name of the run, with which it goes on."""

_NO_LETTER = re.compile(r"[^\w\-. /]")
_LONGEST = 500


@dataclass(frozen=True)
class MlflowConfig(MemberConfig):
    """Configuration of `mlflow`.

    Attributes:
        uri: Of the tracking server, or of a folder, `file:///path` (null: as MLflow's own variables say).
        experiment: The name of the experiment to which the run belongs; it is made if it is not there.
    """

    name: Literal["mlflow"]
    uri: Annotated[str, MinLen(1)] | None
    experiment: Annotated[str, MinLen(1), MaxLen(200)]


@trackers.register("mlflow")
class Mlflow(Tracker):
    """Figures as metrics, in whose names a letter that MLflow does not take is `_`; the configuration as parameters."""

    config_class = MlflowConfig
    package = "mlflow"

    def __init__(self, config: MlflowConfig) -> None:
        self._config = config
        self._client: MlflowClient | None = None
        self._run = ""

    @override
    def begin(self, run: Tracked) -> bool:
        from mlflow import MlflowClient

        client = self._client = MlflowClient(tracking_uri=self._config.uri)
        kept = run.folder / KEPT
        if run.after and kept.is_file():
            self._run = str(parsed_object(kept.read_text(encoding="utf-8"))["run"])
            client.update_run(self._run, "RUNNING")
            return True
        found = client.get_experiment_by_name(self._config.experiment)
        experiment = found.experiment_id if found else client.create_experiment(self._config.experiment)
        self._run = client.create_run(experiment, run_name=run.name).info.run_id
        write_text(kept, json_page({"run": self._run}))
        for key, value in run.settings.items():
            client.log_param(self._run, _NO_LETTER.sub("_", key), str(value)[:_LONGEST])
        return not run.after

    @override
    def tell(self, round: int, figures: Mapping[str, float]) -> None:
        assert self._client is not None, "it has begun"
        for name, value in figures.items():
            self._client.log_metric(self._run, _NO_LETTER.sub("_", name), value, step=round)

    @override
    def end(self, figures: Mapping[str, float], *, finished: bool) -> None:
        assert self._client is not None, "it has begun"
        for name, value in figures.items():
            self._client.log_metric(self._run, _NO_LETTER.sub("_", f"end/{name}"), value)
        self._client.set_terminated(self._run, "FINISHED" if finished else "FAILED")
