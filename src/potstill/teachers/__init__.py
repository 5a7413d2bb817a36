"""Teachers: trained networks that images are recovered from, and that label them."""

from potstill.teachers.check import check_accuracy, check_teacher, names_of, teacher_accuracy
from potstill.teachers.files import (
    Teacher,
    keep_teacher,
    open_teacher,
    read_teacher,
    teacher_facts,
)
from potstill.teachers.plan import (
    CIFAR100,
    IN21K,
    TINY,
    Squeeze,
    TeacherPlan,
    make_teacher,
    planned,
    taken,
)
from potstill.teachers.take import TakeSpec, read_weights, take_spec, take_teacher
from potstill.teachers.train import TeacherSpec, teacher_tasks, train_teacher

__all__ = [
    "CIFAR100",
    "IN21K",
    "TINY",
    "Squeeze",
    "TakeSpec",
    "Teacher",
    "TeacherPlan",
    "TeacherSpec",
    "check_accuracy",
    "check_teacher",
    "keep_teacher",
    "make_teacher",
    "names_of",
    "open_teacher",
    "planned",
    "read_teacher",
    "read_weights",
    "take_spec",
    "take_teacher",
    "taken",
    "teacher_accuracy",
    "teacher_facts",
    "teacher_tasks",
    "train_teacher",
]
