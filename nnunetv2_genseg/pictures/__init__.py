"""Pictures of what a training does."""
