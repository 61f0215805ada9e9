"""The networks, one file each, and `convert.py`, which fills them with published weights."""
