"""Teachers: trained networks that images are recovered from, and that label them."""

from potstill.teachers.check import check_accuracy, check_teacher, names_of, teacher_accuracy
from potstill.teachers.files import (
    Teacher,
    keep_teacher,
    open_teacher,
    read_teacher,
    teacher_facts,
)
from potstill.teachers.train import TeacherSpec, teacher_tasks, train_teacher

__all__ = [
    "Teacher",
    "TeacherSpec",
    "check_accuracy",
    "check_teacher",
    "keep_teacher",
    "names_of",
    "open_teacher",
    "read_teacher",
    "teacher_accuracy",
    "teacher_facts",
    "teacher_tasks",
    "train_teacher",
]
