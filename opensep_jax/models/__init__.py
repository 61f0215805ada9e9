"""The networks, one file each, and what fills them with published weights."""
