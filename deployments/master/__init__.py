"""The Master of an application: who asks it, who tells it, and who stands in for it."""
