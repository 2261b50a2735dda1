"""A worker for tests of the job runner: speaks MLILib.worker's protocol and misbehaves when asked. Imports no library.

Run as ``python fake_worker.py [stay]``; "stay" leaves it in its starter's process group and silent, as a launcher's
child is before it has said hello.
"""

import json
import os
import subprocess
import sys
import time


def say(**event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def answer(number, task, request):
    if task == "echo":
        say(id=number, event="stage", name="Echoing")
        say(id=number, event="fraction", value=0.5, eta=1.5)
        say(id=number, event="message", text="half way")
        say(id=number, event="result", result={"request": request, "pid": os.getpid()})
    elif task == "segment":
        say(id=number, event="result", result=segment(request))
    elif task == "bad":
        error = {
            "kind": "BadInput",
            "what": "It is bad.",
            "cause": "Because.",
            "remedy": "Give another.",
            "exit_code": 2,
        }
        say(id=number, event="error", error=error)
    elif task == "sleep":
        say(id=number, event="stage", name="Sleeping")
        time.sleep(600)
    elif task == "children":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        say(id=number, event="stage", name=f"{os.getpid()} {child.pid}")
        time.sleep(600)
    elif task == "crash":
        sys.stderr.write("first line\nSegmentation something\n")
        sys.stderr.flush()
        os._exit(3)
    elif task == "silent exit":
        os._exit(0)
    elif task == "eat":
        eaten = []
        while True:
            eaten.append(bytearray(1 << 24))
    elif task == "killed":
        os.kill(os.getpid(), 9)
    elif task == "flood":
        for line in range(20000):
            sys.stderr.write(f"line {line} " + "x" * 200 + "\n")
        say(id=number, event="result", result={"lines": 20000})
    elif task == "chatter":
        sys.stdout.write("a library prints here\n")
        say(id=number, event="result", result={})


def segment(request):
    """Write results of the input's size without computing anything: half the volume is label 1."""
    with open(request["images"][0], "rb") as stream:
        header = b"".join(iter(stream.readline, b"\n")).decode()
    fields = dict(line.split(": ", 1) for line in header.splitlines() if ": " in line)
    count = 1
    for size in fields["sizes"].split():
        count *= int(size)
    paths = {"output": request["output"], "uncertainty": request.get("uncertainty", ""), "mutual_information": ""}
    for key, kind, unit in (("output", "uint8", b"\1"), ("uncertainty", "float", b"\0\0\0\x3f")):
        if paths[key]:
            with open(paths[key], "wb") as stream:
                stream.write((header.replace(f"type: {fields['type']}", f"type: {kind}") + "\n").encode())
                stream.write(unit * (count // 2) + bytes(len(unit)) * (count - count // 2))
    paths["record"] = request["output"] + ".json"
    with open(paths["record"], "w", encoding="utf-8") as stream:
        json.dump({"task": "segment", "settings": {"images": request["images"]}}, stream)
    label = {"value": 1, "name": "half", "color": [1, 0, 0], "terminology": "", "voxels": count // 2, "volume_ml": 1.0}
    return {**paths, "labels": [label], "device": "nothing", "seconds": 0.0, "warnings": []}


def main():
    if sys.argv[1:] == ["stay"]:
        time.sleep(600)
    if os.getpgrp() != os.getpid():
        os.setsid()
    say(event="hello", pid=os.getpid(), pgid=os.getpgrp(), python=sys.version.split()[0])
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("quit"):
            return
        answer(message["id"], message["task"], message["request"])


main()
