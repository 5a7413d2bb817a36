"""Small settings of every method, and wrong ones; a new method only adds its own here."""

from dataclasses import replace

from potstill.augment import DSA
from potstill.experts import ExpertPlan, NetworkPath
from potstill.functional.selfsup import BarlowTwins
from potstill.methods.boost import Boost
from potstill.methods.chosen import Use
from potstill.methods.condensation import DCMethod, DMMethod, DSAMethod, IDCMethod
from potstill.methods.coreset import Herding, KCenter, KMedoids, Random
from potstill.methods.inner import Inner
from potstill.methods.krr_st import KRRST
from potstill.methods.mkdt import MKDT
from potstill.methods.mtt import MTT
from potstill.methods.progressive import Progressive
from potstill.methods.ratbptt import RaTBPTT
from potstill.methods.rded import RDED
from potstill.methods.real import RealImages
from potstill.methods.recovering import CDA, SRe2L
from potstill.methods.scored import EL2N, Forgetting
from potstill.methods.subset_kd import SubsetKD
from potstill.methods.tutors import Patches
from potstill.methods.windows import Window
from potstill.recover import CDA_TINY, SRE2L_TINY
from potstill.teachers import EncoderPlan, SelfSupervised, Squeeze, TeacherPlan

EXPERTS = ExpertPlan(count=2, epochs=2, lr=0.05, batch=64)
ONE, USE = replace(EXPERTS, count=1), Use(lr=0.05, epochs=60)
MATCHING = {"networks": 2, "matches": 3, "batch_real": 10, "evaluation_epochs": 100}
TEACHER = TeacherPlan(
    norm="batch", training=Squeeze(lr=0.1, epochs=6, warmup=1, batch=20, augment=None)
)
FEATURES = replace(EXPERTS, lr=0.1, momentum=0.9, augment=None, objective="kd_mse")
SELF = SelfSupervised(
    loss=BarlowTwins(lam=1 / 128),
    head="toy",
    epochs=4,
    warmup=1,
    batch=50,
    augment=DSA(strategy="crop"),
)
SMALL = {
    "krr-st": KRRST(
        iterations=6,
        batch_real=50,
        lr=1e-3,
        models=2,
        life=4,
        image_init="random-balanced",
        evaluation_epochs=30,
        teacher=EncoderPlan(training=SELF),
    ),
    "mkdt": MKDT(
        iterations=6,
        steps=3,
        expert_epochs=1,
        batch_syn=12,
        lr_img=10.0,
        lr_init=0.05,
        image_init="random-balanced",
        teacher=EncoderPlan(training=SELF),
        experts=FEATURES,
    ),
    "mtt": MTT(
        iterations=6,
        steps=3,
        expert_epochs=1,
        max_start_epoch=2,
        batch_syn=12,
        lr_img=10.0,
        lr_lr=1e-5,
        lr_init=0.05,
        evaluation_epochs=20,
        experts=EXPERTS,
    ),
    "ratbptt": RaTBPTT(
        iterations=6,
        window=Window(length=2, total=5),
        tasks=2,
        inner=Inner(lr=0.01),
        real=RealImages(batch=100),
        labels="simplex",
        image_init="real",
        lr_lr=0.01,
        evaluation_steps=60,
    ),
    "boost": Boost(
        base=RaTBPTT(
            iterations=3,
            window=Window(length=2, total=4),
            inner=Inner(lr=0.01),
            real=RealImages(batch=100),
            labels="raw",
            image_init="real",
            evaluation_steps=60,
        ),
    ),
    "progressive": Progressive(
        base=MTT(
            iterations=3,
            steps=3,
            expert_epochs=1,
            max_start_epoch=2,
            lr_img=10.0,
            lr_init=0.05,
            evaluation_epochs=60,
            experts=EXPERTS,
        ),
        stages=2,
        stage_epochs=40,
        conditioning_epochs=4,
    ),
    "dc": DCMethod(**MATCHING, inner_epochs=3, lr_img=0.01, image_init="real"),
    "dsa": DSAMethod(**MATCHING, inner_epochs=3, lr_img=0.01),
    "dm": DMMethod(**MATCHING),
    "idc": IDCMethod(**MATCHING, path=NetworkPath(images=64, batch=32)),
    "random": Random(use=USE),
    "herding": Herding(training=ONE, use=USE),
    "k-center": KCenter(training=ONE, use=USE),
    "k-medoids": KMedoids(training=ONE, use=USE),
    "forgetting": Forgetting(training=ONE, use=USE, keep="easiest"),
    "el2n": EL2N(training=EXPERTS, use=USE, keep="easiest"),
    "sre2l": SRe2L(
        teacher=TEACHER, recovery=replace(SRE2L_TINY, iterations=5, start="real"), use=USE
    ),
    "cda": CDA(
        teacher=TEACHER,
        recovery=replace(CDA_TINY, iterations=5, start="patches"),
        patches=Patches(images=20),
        temperature=4.0,
        use=USE,
    ),
    "subset-kd": SubsetKD(choice="random-balanced", teacher=EncoderPlan(training=SELF)),
    "rded": RDED(teacher=TEACHER, patches=Patches(images=20), use=USE),
}
WRONG = {
    "krr-st": [
        *({name: 0} for name in ("iterations", "batch_real", "models", "life", "lr", "lam")),
        *({name: 0} for name in ("clip", "inner_lr", "evaluation_epochs")),
        *({name: -1} for name in ("momentum", "weight_decay")),
        *({name: float("nan")} for name in ("lr", "lam", "inner_lr", "weight_decay")),
        {"image_init": "high-loss"},
    ],
    "mkdt": [
        *({name: 0} for name in ("iterations", "steps", "expert_epochs", "max_start_epoch")),
        *({name: 0} for name in ("batch_syn", "evaluation_epochs", "lr_img", "lr_init")),
        *({name: -1} for name in ("lr_lr", "lr_target", "head_weight", "momentum")),
        *({name: float("nan")} for name in ("lr_img", "lr_target", "head_weight")),
        *({name: "fancy"} for name in ("image_init", "targets")),
    ],
    "mtt": [
        *({name: 0} for name in ("iterations", "steps", "expert_epochs", "max_start_epoch")),
        *({name: 0} for name in ("batch_syn", "evaluation_epochs", "lr_img", "lr_init")),
        *({name: -1} for name in ("iterations", "batch_syn", "lr_lr", "momentum")),
        *({name: float("nan")} for name in ("lr_img", "lr_lr", "lr_init", "momentum")),
        {"momentum": 1.0},
        {"image_init": "fancy"},
    ],
    "ratbptt": [
        *({name: 0} for name in ("iterations", "tasks", "evaluation_steps", "lr_img", "lr_label")),
        *({name: float("nan")} for name in ("lr_img", "lr_label", "lr_lr")),
        {"lr_lr": -1},
        {"labels": "fancy"},
        {"image_init": "fancy"},
    ],
    "boost": [
        {"blocks": 0},
        {"beta": -0.1},
        {"beta": 1.5},
        {"beta": float("nan")},
    ],
    "progressive": [
        *({name: 0} for name in ("stages", "pool", "conditioning_epochs", "stage_epochs")),
        {"union": "fancy"},
    ],
    **{
        name: [
            *({field: 0} for field in ("networks", "matches", "batch_real", "batch_syn", "factor")),
            *({field: 0} for field in ("inner_batch", "evaluation_epochs", "lr_img", "inner_lr")),
            *({field: -1} for field in ("inner_epochs", "settle", "momentum")),
            *({field: float("nan")} for field in ("lr_img", "inner_lr", "momentum")),
            *({field: "fancy"} for field in ("turns", "pixels", "image_init", "decoder")),
        ]
        for name in ("dc", "dsa", "dm", "idc")
    },
    **{name: [{"keep": "middle"}] for name in ("forgetting", "el2n")},
    **{
        name: [
            *({field: 0} for field in ("batch", "together", "temperature")),
            {"order": "fancy"},
            {"temperature": float("nan")},
        ]
        for name in ("sre2l", "cda")
    },
    "subset-kd": [
        {"evaluation_epochs": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"clusters": -1},
        *({name: "fancy"} for name in ("choice", "groups", "targets")),
    ],
    "rded": [{"temperature": 0}, {"temperature": -1.0}],
}
