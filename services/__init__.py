"""Programs that run beside the platform, each in an environment of its own. They import nothing of the platform."""
