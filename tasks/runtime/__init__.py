"""What makes a function a stage: recipe, runner, engines, graders, progress, artifacts, tracking."""
