"""Training: step.py is one step on a page, loop.py builds a run and drives it, resume.py takes it up again."""
