"""The series' machinery: what a learner never meets. A notebook takes ``start`` from here, and nothing else."""

from series.lesson import Lesson, start

__all__ = ["Lesson", "start"]
