"""Runs one program in the process that was forked for it, and hands over what it computes.

Nothing here is safe from the program, which shares the process: it may read and replace whatever it
finds. That is why no expected value is ever sent to this side, and why what is handed over is
judged on the other.
"""

import errno
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from .values import ValueTooLargeError, encode

Send = Callable[[Any], None]

_TOO_MUCH = {errno.EFBIG, errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EPERM, errno.EACCES, errno.EROFS, errno.ENETUNREACH}


def sender(fd: int) -> Send:
    """Return a function that writes one line of JSON."""
    write, dumps = os.write, json.dumps

    def send(message: Any) -> None:
        data = dumps(message).encode() + b"\n"
        while data:
            data = data[write(fd, data) :]

    return send


def run_program(request: dict[str, Any], send: Send, relax: Callable[[], None]) -> None:
    """Run set-up, code and what follows it; then evaluate the calls and run the asserts.

    Every message is a list: ``["value", i, data]``, ``["passed", i, nonce]``, or
    ``["raised", where, kind, text]`` with the kind of trouble as a status.

    Args:
        request: The parts of the program and the nonces of its asserts.
        send: Sends one message.
        relax: Gives a little more memory, so that running out of it can be reported.
    """
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses look their module up
    space = module.__dict__

    def attempt(where: str, source: str, place: int | None = None) -> bool:
        """Run source, or evaluate it and send its value as that of call ``place``."""
        compiled = None
        try:
            mode = "exec" if place is None else "eval"
            compiled = compile(source, f"<{where}>", mode, dont_inherit=True)
            if place is None:
                exec(compiled, space)  # noqa: S102 - this is the process to do it in
            else:
                send(["value", place, encode(eval(compiled, space))])  # noqa: S307
            return True
        except BaseException as error:
            if isinstance(error, MemoryError):
                relax()
            kind = status_of(error, compiled=compiled is not None)
            send(["raised", where, kind, describe(error)])
            return False

    for where in ("setup", "code", "after"):
        if request[where] and not attempt(where, request[where]):
            return
    for i, call in enumerate(request["calls"]):
        attempt(f"call {i}", call, i)
    for i, statement in enumerate(request["asserts"]):
        if attempt(f"assert {i}", statement):
            send(["passed", i, request["nonces"][i]])


def status_of(error: BaseException, *, compiled: bool) -> str:
    """Return the kind of trouble that an exception stands for."""
    if isinstance(error, MemoryError):
        return "memory" if compiled else "syntax"  # the parser's stack is full
    if not compiled and isinstance(error, (SyntaxError, ValueError, RecursionError)):
        return "syntax"
    if isinstance(error, ValueTooLargeError):
        return "output_limit"
    if isinstance(error, AssertionError):
        return "failed"
    number = getattr(error, "errno", None) if isinstance(error, OSError) else None
    if number in _TOO_MUCH:
        return "output_limit"
    return "forbidden" if number in _REFUSED else "error"


def describe(error: BaseException) -> str:
    """Return the type and message of an exception, whatever its ``__str__`` does."""
    name = type.__dict__["__name__"].__get__(type(error))
    try:
        return f"{name}: {str(error)[:300]}"
    except BaseException:
        return str(name)
