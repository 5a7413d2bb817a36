"""An optimizer that tells what it is asked, for golden traces of protocols."""

from __future__ import annotations


class Recorder:
    """Plain gradient descent that writes down resets and step sizes."""

    def __init__(self, digits: str) -> None:
        self.calls: list[str] = []
        self.digits = digits

    def init(self, theta):
        self.calls.append("reset")
        return ()

    def update(self, theta, grad, state, lr, step):
        self.calls.append(f"{float(lr):{self.digits}} step {step}")
        return theta - lr * grad, state
