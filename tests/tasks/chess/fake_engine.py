"""A UCI engine of the tests: answers, or fails in the way that its argument names."""

import sys
import time


def say(text: str) -> None:
    print(text, flush=True)


def main(mode: str) -> None:
    for line in sys.stdin:
        word = line.split()[0]
        if word == "uci":
            if mode == "mute":
                time.sleep(60)
            say("id name Fake 1")
            say("option name MultiPV type spin default 1 min 1 max 500")
            say("uciok")
        elif word == "isready":
            say("readyok")
        elif word == "go":
            if mode == "hangs":
                time.sleep(60)
            if mode == "dies":
                sys.exit(3)
            if mode == "silent":
                say("info string nothing to say")
            else:
                say("info depth 1 multipv 1 score cp 10 pv a2a3")
            say("bestmove a2a3")
        elif word == "quit":
            break


if __name__ == "__main__":
    main(sys.argv[1])
