"""A worker for tests of the job runner: speaks MLILib.worker's protocol and misbehaves when asked. Imports no library.

Run as ``python fake_worker.py [stay]``; "stay" leaves it in its starter's process group and silent, as a launcher's
child is before it has said hello.
"""

import json
import os
import struct
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
    elif task == "register":
        say(id=number, event="result", result=register(number, request))
    elif task == "fuse":
        say(id=number, event="result", result=fuse(number, request))
    elif task == "draw":
        for path in request["pictures"]:
            say(id=number, event="samples", path=path)
        say(id=number, event="stage", name="Writing")
        say(id=number, event="result", result={})
    elif task == "explain":
        say(id=number, event="result", result=explain(number, request))
    elif task == "explain-layers":
        say(id=number, event="result", result=LAYERS)
    elif task == "explain-check":
        say(id=number, event="result", result=explain_check(request))
    elif task == "attack":
        say(id=number, event="result", result=attack(request))
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


def header_of(path):
    with open(path, "rb") as stream:
        text = b"".join(iter(stream.readline, b"\n")).decode()
    return text, dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


#: What "register" finds: fixed points and this, LPS mm, are the moving points.
SHIFT = (3.0, -2.0, 1.0)


def register(number, request):
    """Find a shift without computing anything, with the events of a real registration."""
    if request["seed"] == 99:
        say(id=number, event="stage", name="Rigid, level 1 of 2")
        time.sleep(600)
    for level in (1, 2):
        say(id=number, event="stage", name=f"Rigid, level {level} of 2")
        for iteration in range(10):
            value = 1.0 / (iteration + level)
            say(id=number, event="curve", stage="Rigid", level=level, iteration=iteration, value=value)
            say(id=number, event="fraction", value=(iteration + 1) / 10, eta=1.0)
            time.sleep(0.01)
    text, fields = header_of(request["fixed"])
    count = 1
    for size in fields["sizes"].split():
        count *= int(size)
    floats = text.replace(f"type: {fields['type']}", "type: float") + "\n"
    if request["transform"].endswith(".tfm"):
        with open(request["transform"], "w", encoding="ascii") as stream:
            stream.write("#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n")
            stream.write(f"Parameters: 1 0 0 0 1 0 0 0 1 {SHIFT[0]} {SHIFT[1]} {SHIFT[2]}\nFixedParameters: 0 0 0\n")
    else:
        field = floats.replace("dimension: 3", "dimension: 4").replace("sizes: ", "sizes: 3 ")
        field = field.replace("space directions: ", "space directions: none ").replace("kinds: ", "kinds: vector ")
        with open(request["transform"], "wb") as stream:
            stream.write(field.encode() + struct.pack("<3f", *SHIFT) * count)
    for key, value in (("output", 5.0), ("jacobian", 1.0)):
        if request.get(key):
            with open(request[key], "wb") as stream:
                stream.write(floats.encode() + struct.pack("<f", value) * count)
    record = request["transform"] + ".json"
    with open(record, "w", encoding="utf-8") as stream:
        json.dump({"task": "register", "settings": request}, stream)
    quality = {
        "similarity_before": {"nmi": 1.1}, "similarity_after": {"nmi": 1.4},
        "dice": {"1": {"before": 0.4, "after": 0.9}} if request.get("fixed_labels") else {}, "hd95": {}, "tre": None,
        "jacobian": {"min": 1.0, "max": 1.0, "folded": 0.0, "sd_log": 0.0, "sd_log_learn2reg": 0.0},
        "inverse_consistency": {"mean": 0.0, "max": 0.0}, "warnings": ["It looks too good."], "notes": [],
    }  # fmt: skip
    curve = [{"stage": "Rigid", "level": 1, "iteration": i, "value": 1.0 / (i + 1)} for i in range(10)]
    return {
        "transform": request["transform"], "output": request.get("output", ""), "record": record, "quality": quality,
        "jacobian": request.get("jacobian", ""),
        "kind": "linear" if request["transform"].endswith(".tfm") else "deformable", "curve": curve,
        "device": "nothing", "seconds": 0.0, "warnings": [],
    }  # fmt: skip


#: What becomes of the atlases in "fuse", in turn; those that remain are used.
FATES = ("used", "cached", "failed", "left out")


def fuse(number, request):
    """Make half of the image label 1 without computing anything, with the events of a real fusion."""
    first = request.get("target") or request["labels"][0]
    names, labels = [], [{"value": 1, "name": "half", "color": [1, 0, 0], "terminology": "", "volume_ml": 1.234}]
    if request.get("atlases", "").endswith(".json"):
        with open(request["atlases"], encoding="utf-8") as stream:
            data = json.load(stream)
        names = [os.path.splitext(os.path.basename(one["image"]))[0] for one in data["training"]]
        labels = [{**labels[0], "value": int(v), "name": name} for v, name in data["labels"].items() if v != "0"]
    elif request.get("labels"):
        names = [os.path.splitext(os.path.basename(one))[0] for one in request["labels"]]
        labels = [{**labels[0], "value": int(v), "name": n} for v, n in (one.split("=") for one in request["names"])]
    fates = dict(zip(names, FATES, strict=False)) if request.get("atlases") else {}
    for name in names if request.get("atlases") else ():
        say(id=number, event="rater", name=name, status="waiting")
    say(id=number, event="stage", name="Registering atlases")
    for index, name in enumerate(names if request.get("atlases") else ()):
        fate = fates.get(name, "used")
        if fate != "cached":
            say(id=number, event="rater", name=name, status="registering")
        say(id=number, event="fraction", value=(index + 0.5) / len(names), eta=64.0 - index)
        if request["seed"] == 99:
            time.sleep(600)
        time.sleep(0.1)
        say(id=number, event="rater", name=name, status="done" if fate == "used" else fate)
    text, fields = header_of(first)
    count = 1
    for size in fields["sizes"].split():
        count *= int(size)
    for key, kind, unit in (("output", "uint8", b"\1"), ("disagreement", "float", struct.pack("<f", 0.5))):
        if request.get(key):
            with open(request[key], "wb") as stream:
                stream.write((text.replace(f"type: {fields['type']}", f"type: {kind}") + "\n").encode())
                stream.write(unit * (count // 2) + bytes(len(unit)) * (count - count // 2))
    record = request["output"] + ".json"
    with open(record, "w", encoding="utf-8") as stream:
        json.dump({"task": "fuse", "settings": request}, stream)
    raters = [
        {
            "name": name, "status": "used" if fates.get(name) == "cached" else fates.get(name, "used"),
            "reason": "It looks like nothing else." if fates.get(name) in FATES[2:] else "",
            "seconds": 12.0 if request.get("atlases") else 0.0, "cached": fates.get(name) == "cached",
        }
        for name in names
    ]  # fmt: skip
    used = [one["name"] for one in raters if one["status"] == "used"]
    return {
        "output": request["output"], "disagreement": request.get("disagreement", ""), "record": record,
        "labels": labels, "raters": raters, "report": report(used, labels, count), "metrics": None,
        "method": request["method"], "device": "nothing", "seconds": 0.0, "warnings": ["It looks too good."],
        "text": "",
    }  # fmt: skip


def report(names, labels, count):
    """A report as MLILib.fusion.rater_report makes it, of invented numbers."""

    def measures(i):
        return {
            "dice": 0.9 - 0.1 * i, "sensitivity": 0.8, "specificity": 0.99999, "estimated_sensitivity": None,
            "estimated_specificity": None,
        }  # fmt: skip

    drawn = [{"value": one["value"], "name": one["name"], "voxels": 9, "volume_ml": 0.009} for one in labels]
    people = [
        {
            "name": name, "kept": True, "weight": 0.5 / (i + 1), **measures(i),
            "labels": [{**one, "weight": None, **measures(i)} for one in drawn],
        }
        for i, name in enumerate(names)
    ]  # fmt: skip
    pairs = [[1.0 if i == j else 0.7 + 0.01 * (i + j) for j in range(len(names))] for i in range(len(names))]
    return {
        "measure": "weight", "labels": drawn, "raters": people,
        "agreement": {
            "kappa": 0.79, "kappa_voxels": count, "dice": 0.75, "pairs": pairs,
            "labels": [{"value": one["value"], "name": one["name"], "dice": 0.75} for one in labels],
        },
        "disagreement": {"voxels": 1234, "mean_bits": 0.5, "max_bits": 0.5},
        "region": {"start": [0, 0, 0], "size": [20, 18, 16], "voxels": 5760, "whole": False},
        "ties": 0, "iterations": 0, "notes": ["One voxel was a tie."],
    }  # fmt: skip


def segment(request):
    """Write results of the input's size without computing anything: half the volume is label 1."""
    header, fields = header_of(request["images"][0])
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


#: What "explain-layers" lists; the second one cannot be looked at.
LAYERS = {
    "layers": [
        {"name": "encoder.0", "kind": "Conv3d", "parameters": 1234, "shape": [8, 16, 16, 16], "calls": 1,
         "places": True, "depth": 1, "field": [3, 3, 3]},
        {"name": "head", "kind": "Linear", "parameters": 10, "shape": [2], "calls": 1, "places": False, "depth": 0,
         "field": None},
        {"name": "decoder.conv", "kind": "Conv3d", "parameters": 99, "shape": [4, 32, 32, 32], "calls": 1,
         "places": True, "depth": 1, "field": [21, 21, 21]},
    ],
    "default": "encoder.0", "parameters": 1343, "input": [1, 32, 32, 32], "output": [3, 32, 32, 32],
    "field": [21, 21, 21], "statistics": True, "model": {"name": "tiny", "sha256": ""}, "text": "",
}  # fmt: skip
#: Half the edge lengths of the boxes that "explain" finds round a point, mm.
BOXES = {"theoretical": 10.0, "effective": 4.0}


def explain(number, request):
    """A map that grows along the first axis from -1 to 1 (each component k times that), without computing anything."""
    say(id=number, event="stage", name="Explaining")
    if request["seed"] == 99:
        time.sleep(600)
    text, fields = header_of(request["images"][0])
    size = [int(n) for n in fields["sizes"].split()]
    components = 3 if request["method"] == "activations" else 1
    header = text.replace(f"type: {fields['type']}", "type: float")
    if components > 1:
        header = header.replace("dimension: 3", "dimension: 4").replace("sizes: ", f"sizes: {components} ")
        header = header.replace("space directions: ", "space directions: none ").replace("kinds: ", "kinds: vector ")
    row = []
    for i in range(size[0]):
        row += [(k + 1) * (2.0 * i / (size[0] - 1) - 1.0) for k in range(components)]
    with open(request["output"], "wb") as stream:
        stream.write((header + "\n").encode() + struct.pack(f"<{len(row)}f", *row) * (size[1] * size[2]))
    record = request["output"] + ".json"
    with open(record, "w", encoding="utf-8") as stream:
        json.dump({"task": "explain", "settings": request}, stream)
    field = None
    if request.get("point") and request["field"]:
        center = [float(part) for part in request["point"].split(",")]
        axes = [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
        field = {
            kind: {"center_ras": center, "size_mm": [2 * half, half, half], "axes_ras": axes, "voxels": 1}
            for kind, half in BOXES.items()
        }
        field["effective"]["share"] = 0.95
    ablation = request["method"].startswith("ablation")
    return {
        "map": request["output"], "report": "", "record": record, "method": request["method"], "title": "", "shows": "",
        "makes": "image" if request["method"] == "inversion" else "map", "signed": request["method"] != "grad-cam",
        "components": components, "badge": "not tested", "layer": request.get("layer", ""), "unit": None,
        "target": {"kind": "label", "label": 1, "name": "left", "text": "the label left", "score": 3.5, "voxels": 7,
                   "point_ras": None},
        "prediction": [{"value": 1, "name": "left", "score": 1.0, "voxels": 1234},
                       {"value": 2, "name": "right", "score": 1.0, "voxels": 0}],
        "display": {"low": -0.9, "high": 0.9, "minimum": -1.0, "maximum": 1.0, "sum": 0.0},
        "completeness_error": 0.004 if request["method"] == "integrated-gradients" else None,
        "parts": [{"part": 1, "name": "left", "fall": 0.25}, {"part": 2, "name": "right", "fall": -0.5}]
        if ablation else [],
        "curve": {"title": "Loss", "x": [1, 2, 3], "y": [3.0, 2.0, 1.5]} if request["method"] == "inversion" else None,
        "windows": 1, "window": size, "receptive_field": field, "memory": {"estimated": 1, "free": 2},
        "device": "nothing", "seconds": 0.5, "stages": [], "warnings": ["It looks too good."], "model": {}, "text": "",
    }  # fmt: skip


def explain_check(request):
    """Verdicts that are made up: guided backpropagation is an edge detector, all else reacts to the model."""

    def curve(area):
        return {"fractions": [0.0, 0.5, 1.0], "scores": [1.0, area, 0.0], "area": area, "areas": [area],
                "p_random": None, "p_edges": None}  # fmt: skip

    def one(name, index):
        guided = name == "guided-backpropagation"
        return {
            "method": name, "title": name.capitalize(), "badge": "edge detector" if guided else "reacts to the model",
            "reason": f"{name} was looked at.", "left": 0.9 if guided else 0.1, "edges": 0.5, "chance": 0.0,
            "layers": [{"layer": "b", "signed": 0.5, "magnitude": 0.6},
                       {"layer": "a", "signed": 0.1, "magnitude": 0.2}],
            "labels": None, "completeness_error": None, "deletion": curve(0.2 + 0.1 * index),
            "insertion": curve(0.8 - 0.1 * index),
            "sensitivity": {"radius": 0.02, "largest": 0.1, "correlation": 0.95}, "seconds": 0.1,
        }  # fmt: skip

    controls = [
        {"method": "", "title": title, "left": None, "deletion": curve(0.5), "insertion": curve(0.5)}
        for title in ("random map", "edge detector")
    ]
    return {
        "methods": [one(name, index) for index, name in enumerate(request["methods"])], "controls": controls,
        "cases": 1, "targets": ["left"], "layer": "", "warnings": ["One image says little."],
        "device": "nothing", "seconds": 2.0, "stages": [], "model": {}, "output": "", "text": "",
    }  # fmt: skip


def attack(request):
    """Add epsilon to all voxels, without computing anything; what was right becomes wrong in half the volume."""
    text, fields = header_of(request["images"][0])
    count = 1
    for size in fields["sizes"].split():
        count *= int(size)
    epsilon = request["epsilon"]
    for key, value in (("output", 100.0 + epsilon), ("difference", epsilon)):
        with open(request[key], "wb") as stream:
            header = text.replace(f"type: {fields['type']}", "type: float") + "\n"
            stream.write(header.encode() + struct.pack("<f", value) * count)
    for key, share in (("prediction_before", 2), ("prediction", 4)):
        if request.get(key):
            with open(request[key], "wb") as stream:
                header = text.replace(f"type: {fields['type']}", "type: uint8") + "\n"
                stream.write(header.encode() + b"\1" * (count // share) + bytes(count - count // share))
    record = request["output"] + ".json"
    with open(record, "w", encoding="utf-8") as stream:
        json.dump({"task": "attack", "settings": request}, stream)
    classes = []
    return {
        "output": request["output"], "difference": request["difference"], "clean": "", "record": record,
        "prediction": request.get("prediction", ""), "prediction_before": request.get("prediction_before", ""),
        "epsilon": epsilon, "method": request["method"], "measure": "Dice", "before": 1.0, "after": 1.0 / (1 + epsilon),
        "after_file": None, "loss_before": 0.1, "loss_after": 1.0, "classes_before": classes, "classes_after": classes,
        "largest_change": epsilon,
        "curve": {"epsilons": [0.0, epsilon], "values": [1.0, 0.5], "losses": [0.1, 1.0]},
        "linear": {"layer": "conv", "inputs": 27, "weight": 0.1, "epsilon": epsilon, "change": 2.7 * epsilon,
                   "largest": 1.0, "noise": 0.5, "text": "Small changes add up."},
        "scale": [1.0], "truth": "the given labels" if request.get("truth") else "the model's own prediction",
        "device": "nothing", "seconds": 0.2, "stages": [], "warnings": [], "model": {}, "text": "",
    }  # fmt: skip


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


if __name__ == "__main__":
    main()
