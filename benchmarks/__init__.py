"""Speed and memory of both script folders against the released configuration."""
