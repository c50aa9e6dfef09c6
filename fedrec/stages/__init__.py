"""From what users trained to their sum: the stages of every contribution, on devices and on the server."""
