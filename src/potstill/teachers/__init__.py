"""Teachers: trained networks that images are recovered from, and that label or encode them."""

from potstill.teachers.check import (
    check_accuracy,
    check_facts,
    check_teacher,
    names_of,
    teacher_accuracy,
)
from potstill.teachers.encoder_plan import ENCODERS, EncoderPlan, encoder_phase, make_encoder
from potstill.teachers.encoders import (
    Encoder,
    encoder_facts,
    keep_encoder,
    open_encoder,
    read_encoder,
)
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
from potstill.teachers.selfsup import (
    MIXBT_CIFAR,
    MIXBT_TINY,
    SAS_CIFAR,
    SAS_TINY,
    SOLOLEARN_CIFAR,
    TRAININGS,
    SelfSupervised,
)
from potstill.teachers.take import TakeSpec, read_weights, take_spec, take_teacher
from potstill.teachers.take_encoder import TakeEncoderSpec, take_encoder
from potstill.teachers.targets import TargetsSpec, check_encoder, encode, encoded, target_tasks
from potstill.teachers.train import TeacherSpec, teacher_tasks, train_teacher
from potstill.teachers.train_encoder import EncoderSpec, train_encoder

__all__ = [
    "CIFAR100",
    "ENCODERS",
    "IN21K",
    "MIXBT_CIFAR",
    "MIXBT_TINY",
    "SAS_CIFAR",
    "SAS_TINY",
    "SOLOLEARN_CIFAR",
    "TINY",
    "TRAININGS",
    "Encoder",
    "EncoderPlan",
    "EncoderSpec",
    "SelfSupervised",
    "Squeeze",
    "TakeEncoderSpec",
    "TakeSpec",
    "TargetsSpec",
    "Teacher",
    "TeacherPlan",
    "TeacherSpec",
    "check_accuracy",
    "check_encoder",
    "check_facts",
    "check_teacher",
    "encode",
    "encoded",
    "encoder_facts",
    "encoder_phase",
    "keep_encoder",
    "keep_teacher",
    "make_encoder",
    "make_teacher",
    "names_of",
    "open_encoder",
    "open_teacher",
    "planned",
    "read_encoder",
    "read_teacher",
    "read_weights",
    "take_encoder",
    "take_spec",
    "take_teacher",
    "taken",
    "target_tasks",
    "teacher_accuracy",
    "teacher_facts",
    "teacher_tasks",
    "train_encoder",
    "train_teacher",
]
