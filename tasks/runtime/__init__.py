"""What makes a function a stage: recipe, runner, engines, progress, tracker, artifacts."""
