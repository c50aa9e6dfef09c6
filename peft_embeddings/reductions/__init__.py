"""How text vectors of any width become a base table: each reduction can be chosen by name."""
