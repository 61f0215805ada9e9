"""What lies on disk: training checkpoints and published weights, found by name."""
