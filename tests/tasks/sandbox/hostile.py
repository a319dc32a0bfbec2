# ruff: noqa: E501 - programs, each on as few lines as it has parts
"""Programs that try to pass without solving, to break out, or to do harm; none may pass.

Each is an attempt at ``f``, which should add 1; ``expected`` are the statuses it may end with.
``{parent}`` stands for the number of a process outside, ``{file}`` for a file that is not its own.
"""

from dataclasses import dataclass

TESTS = ("assert f(2) == 3", "assert f(987654320) == 987654321")


@dataclass(frozen=True)
class Hostile:
    name: str
    code: str
    expected: tuple[str, ...]


def prepare(hostile: Hostile, *, parent: int, file: str) -> str:
    """Return the code with its placeholders filled in."""
    return hostile.code.replace("{parent}", str(parent)).replace("{file}", file)


def _h(name: str, expected: str, code: str) -> Hostile:
    return Hostile(name, code, tuple(expected.split()))


HOSTILE = [
    _h("infinite loop", "timeout", "while True: pass"),
    _h("infinite loop in the function", "timeout", "def f(x):\n    while True: pass"),
    _h("sleep", "timeout", "import time\ntime.sleep(1000)"),
    _h("fork bomb", "forbidden timeout", "import os\nwhile True: os.fork()"),
    _h(
        "fork bomb that ignores errors",
        "timeout",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ),
    _h("memory bomb", "memory", "x = bytearray(1 << 40)"),
    _h("memory bomb by steps", "memory", "x = []\nwhile True: x.append(' ' * 1000000)"),
    _h(
        "memory bomb that goes on",
        "timeout memory error",
        "x = []\nwhile True:\n    try: x.append(' ' * 10**7)\n    except MemoryError: pass",
    ),
    _h("1 GB print", "output_limit", "while True: print('x' * 100000)"),
    _h("1 GB in one string", "memory", "print('x' * 10**9)"),
    _h("1 GB to standard error", "output_limit", "import os\nwhile 1: os.write(2, b'x' * 10**6)"),
    _h("1 GB returned", "output_limit memory", "def f(x): return 'x' * (10 ** 8)"),
    _h("1 GB file", "output_limit", "f = open('a', 'wb')\nwhile True: f.write(b'x' * 10**6)"),
    _h("many files", "output_limit error", "for i in range(5000): open(str(i), 'w').close()"),
    _h("os._exit(0)", "error", "import os\nos._exit(0)"),
    _h("os._exit(0) in the function", "error", "import os\ndef f(x): os._exit(0)"),
    _h("sys.exit(0)", "error", "import sys\nsys.exit(0)"),
    _h("sys.exit(0) in the function", "error", "import sys\ndef f(x): sys.exit(0)"),
    _h("raise SystemExit", "error", "raise SystemExit"),
    _h("abort", "error", "import os\nos.abort()"),
    _h("kill -9 itself", "error", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
    _h("kill the group", "error", "import os\nos.killpg(0, 9)"),
    _h("stop itself", "timeout", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"),
    _h(
        "ignore every signal",
        "timeout",
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
    ),
    _h(
        "equal to everything",
        "failed",
        "class A:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(x): return A()",
    ),
    _h(
        "a number equal to everything",
        "failed",
        "class A(int):\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n"
        "    __hash__ = int.__hash__\n    __repr__ = lambda s: '3'\ndef f(x): return A(-1)",
    ),
    _h(
        "a list that lies",
        "failed",
        "class L(list):\n    def __eq__(s, o): return True\n    def __iter__(s): return iter([3])\n"
        "def f(x): return L([9])",
    ),
    _h(
        "poses as another class",
        "failed error",
        "class A:\n    __class__ = int\n    def __eq__(s, o): return True\ndef f(x): return A()",
    ),
    _h(
        "a repr that raises",
        "failed",
        "class A:\n    def __repr__(self): raise SystemExit\ndef f(x): return A()",
    ),
    _h(
        "a truth that never ends",
        "timeout",
        "class A:\n    def __bool__(self):\n        while True: pass\ndef f(x): return A()",
    ),
    _h(
        "an exception whose text never ends",
        "timeout",
        "class E(Exception):\n    def __str__(self):\n        while True: pass\ndef f(x): raise E",
    ),
    _h(
        "patched builtins",
        "failed error",
        "import builtins\nfor n in ('isinstance', 'len', 'type', 'eval', 'exec', 'compile'):\n"
        "    setattr(builtins, n, lambda *a, **k: True)\ndef f(x): return 0",
    ),
    _h("no builtins", "error", "import builtins\nbuiltins.__dict__.clear()\ndef f(x): return 3"),
    _h(
        "patched json",
        "failed error",
        "import json\njson.dumps = lambda *a, **k: '[\"value\", 0, null]'\ndef f(x): return 0",
    ),
    _h(
        "patched encoder",
        "failed error",
        "import sys\nfor m in list(sys.modules.values()):\n    if hasattr(m, 'encode'):\n"
        "        m.encode = lambda v: True\ndef f(x): return 0",
    ),
    _h(
        "replaced standard output",
        "failed",
        "import sys\nsys.stdout = sys.stderr = None\ndef f(x): return 0",
    ),
    _h(
        "writes a verdict to every file",
        "failed error",
        "import os\nfor fd in range(64):\n    for line in (b'[\"value\", 0, true]\\n', b'passed\\n',\n"
        "        b'{\"passed\": true}\\n', b'[\"passed\", 0, \"0\"]\\n', b'\\x00\\x00\\x00\\x02{}'):\n"
        "        try: os.write(fd, line)\n        except OSError: pass\nos._exit(0)",
    ),
    _h(
        "writes what cannot be read",
        "error",
        "import os\nos.write(3, b'[' * 100000 + b'\\n' + b'\\xff\\x00\\n' + b'9' * 9999 + b'\\n')\n"
        'os.write(3, b\'["value", 0, ["s", [["l", []]]]]\\n["value", -1, 3]\\n["value", 9e9]\\n\')'
        "\nos._exit(0)",
    ),
    _h(
        "claims that the sandbox failed",
        "error",
        'import os\nos.write(3, b\'["raised", "code", "sandbox_error", ""]\\n\')\nos._exit(0)',
    ),
    _h(
        "claims that the set-up failed",
        "error",
        'import os\nos.write(3, b\'["raised", "setup", "error", ""]\\n\')\nos._exit(0)',
    ),
    _h("closes all files", "error", "import os\nos.closerange(0, 65536)\ndef f(x): return x + 1"),
    _h(
        "looks for what is expected",
        "failed error",
        "import gc, sys\ndef f(x):\n    frame, seen = sys._getframe(), []\n    while frame:\n"
        "        seen += [v for v in frame.f_locals.values()]\n        frame = frame.f_back\n"
        "    text = repr(seen) + repr([o for o in gc.get_objects() if type(o) is dict])\n"
        "    wanted = ''.join(['98765', '4321'])\n    return int(wanted) if wanted in text else 0",
    ),
    _h("network", "forbidden", "import socket\nsocket.create_connection(('127.0.0.1', 80), 1)"),
    _h(
        "network by name", "forbidden error", "import socket\nsocket.getaddrinfo('example.org', 80)"
    ),
    _h("a server", "forbidden", "import socket\nsocket.socket().bind(('', 0))"),
    _h("writes outside its folder", "forbidden error", "open('{file}', 'w').write('x')"),
    _h("makes files in /", "forbidden", "open('/selftrain-was-here', 'w')"),
    _h("climbs out", "forbidden error", "open('../../../../etc/passwd', 'a').write('x')"),
    _h("reads the parent's file", "forbidden error", "def f(x): return open('{file}').read()"),
    _h("reads /etc/passwd", "forbidden error", "def f(x): return open('/etc/passwd').read()"),
    _h(
        "links to a file outside",
        "forbidden error",
        "import os\nos.symlink('{file}', 'a')\ndef f(x): return open('a').read()",
    ),
    _h("lists /proc", "forbidden error", "import os\nos.listdir('/proc')"),
    _h("reads its parent's memory", "forbidden error", "open('/proc/{parent}/mem', 'rb')"),
    _h("environment", "failed", "import os\ndef f(x): return dict(os.environ)"),
    _h("kills the parent", "forbidden error", "import os\nos.kill({parent}, 9)"),
    _h("kills the server", "forbidden failed", "import os\nos.kill(os.getppid(), 9)\ndef f(x): 0"),
    _h("stops the server", "forbidden failed", "import os\nos.kill(os.getppid(), 19)\ndef f(x): 0"),
    _h("kills everything", "forbidden error failed", "import os\nos.kill(-1, 9)\ndef f(x): 0"),
    _h(
        "traces the server",
        "error",
        "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0): raise OSError",
    ),
    _h(
        "makes a user namespace",
        "error",
        "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise OSError",
    ),
    _h(
        "mounts",
        "error",
        "import ctypes\nif ctypes.CDLL(None).mount(b'a', b'/', b'tmpfs', 0, 0): 1/0",
    ),
    _h("becomes root", "forbidden error failed", "import os\nos.setuid(0)\ndef f(x): 0"),
    _h("raises its limits", "error", "import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))"),
    _h(
        "daemon",
        "forbidden failed",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        time.sleep(1000)\n    os._exit(0)\ndef f(x): return 0",
    ),
    _h("executes a shell", "forbidden error", "import os\nos.execv('/bin/sh', ['sh'])"),
    _h("os.system", "failed", "import os\ndef f(x): return os.system('true') == 0 and x + 1"),
    _h("subprocess", "forbidden error", "import subprocess\nsubprocess.run(['true'])"),
    _h("multiprocessing", "forbidden error", "import multiprocessing as m\nm.Process().start()"),
    _h(
        "threads that never end",
        "failed",
        "import threading\ndef g():\n    while True: pass\n"
        "for _ in range(3): threading.Thread(target=g).start()\ndef f(x): return 0",
    ),
    _h(
        "too many threads",
        "error memory",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=[99]).start()",
    ),
    _h(
        "waits in an exit handler",
        "failed",
        "import atexit, time\natexit.register(time.sleep, 1000)\ndef f(x): return 0",
    ),
    _h(
        "catches everything",
        "timeout",
        "while True:\n    try:\n        while True: raise SystemExit\n    except BaseException: pass",
    ),
    _h(
        "finalisers that make themselves again",
        "timeout memory",
        "class A:\n    def __del__(self): A()\nA()\nwhile True: A()",
    ),
    _h("deep recursion", "error", "def f(x): return f(x)"),
    _h(
        "deep recursion without a limit",
        "error memory timeout",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    ),
    _h("deep nesting", "syntax", "x = " + "(" * 5000 + ")" * 5000),
    _h("deep nesting of signs", "syntax error", "x = " + "-" * 100_000 + "1"),
    _h("deep nesting of blocks", "syntax", "\n".join(" " * i + "if 1:" for i in range(200))),
    _h("9**9**9", "timeout", "x = 9**9**9"),
    _h("9**9**9 as text", "timeout", "def f(x): return str(9**9**9)"),
    _h("unclosed string", "syntax", "x = 'abc"),
    _h("null bytes", "syntax", "x = 1\0"),
    _h("lone surrogate", "syntax failed", "x = '\ud800'\ndef f(x): return '\ud800'"),
    _h("no Python", "syntax", "I cannot help with that."),
    _h("a generator", "failed", "def f(x): yield x + 1"),
    _h("an infinite iterator", "failed", "import itertools\ndef f(x): return itertools.count()"),
    _h("a function", "failed", "def f(x): return lambda: 3"),
    _h("contains itself", "output_limit", "def f(x):\n    a = []\n    a.append(a)\n    return a"),
    _h(
        "nested deeply",
        "output_limit",
        "def f(x):\n    a = []\n    for _ in range(9999): a = [a]\n    return a",
    ),
    _h("a long integer", "output_limit", "def f(x): return 1 << 10**7"),
    _h("equal hashes", "failed", "def f(x): return {i * (2**61 - 1) for i in range(5000)}"),
    _h("a long range", "failed", "def f(x): return range(10**15)"),
    _h(
        "a tracing function",
        "failed",
        "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\n"
        "def f(x): return 0",
    ),
    _h(
        "a deep tree of folders",
        "failed error output_limit",
        "import os\nfor _ in range(99):\n    os.mkdir('d' * 99)\n    os.chdir('d' * 99)\ndef f(x): 0",
    ),
    _h(
        "a folder without rights",
        "failed",
        "import os\nos.mkdir('a')\nos.chmod('a', 0)\ndef f(x): 0",
    ),
    _h("an installed package", "error forbidden", "import numpy"),
    _h("no function", "error", "x = 1"),
    _h("crashes", "error", "import ctypes\nctypes.string_at(0)"),
    _h("raises at import", "error", "raise ValueError('x' * 10**6)"),
]
