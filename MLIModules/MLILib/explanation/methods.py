"""The explanation methods, in words: what each shows, after whom, and what it needs. Imports nothing heavy."""

from __future__ import annotations

import dataclasses

#: Verdicts of `mli explain-check`, as a badge beside a method.
REACTS = "reacts to the model"
EDGES = "edge detector"
NOT_TESTED = "not tested"


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to explain.

    Attributes:
        title: for a reader.
        shows: a sentence; the widget shows it where one chooses.
        source: authors and year.
        makes: "map" (an attribution), "maps" (a layer's channels) or "image" (an image made by the network).
        signed: whether the map has values below 0, which speak against the target: diverging colours round 0.
        layer: whether it looks at a layer.
        target: whether it explains a target (a class, a label, a voxel); the others look at a layer alone.
        differentiates: whether it needs gradients through the network.
        each_channel: whether the map has a component for each input channel.
    """

    title: str
    shows: str
    source: str
    makes: str = "map"
    signed: bool = True
    layer: bool = False
    target: bool = True
    differentiates: bool = True
    each_channel: bool = True


METHODS: dict[str, Method] = {
    "gradient": Method(
        "Gradient (saliency)",
        "How much the score would change if a voxel became a little brighter.",
        "Simonyan 2013",
    ),
    "gradient-x-input": Method(
        "Gradient x input",
        "What each voxel adds to the score, if the network were linear.",
        "Shrikumar 2016",
    ),
    "integrated-gradients": Method(
        "Integrated gradients",
        "What each voxel adds to the score on the way from an image that says nothing; the map adds up to the score's "
        "difference.",
        "Sundararajan 2017",
    ),
    "smoothgrad": Method(
        "SmoothGrad",
        "The gradient, averaged over noisy copies of the image, so that what is left does not hang on noise.",
        "Smilkov 2017",
    ),
    "deconvnet": Method(
        "DeconvNet",
        "Which pattern in the image could have caused the score, projected back through the network's layers.",
        "Zeiler 2014",
    ),
    "guided-backpropagation": Method(
        "Guided backpropagation",
        "Fine detail that excites units on the way to the score; sharp, but known to draw edges whatever was learned.",
        "Springenberg 2015",
    ),
    "grad-cam": Method(
        "Grad-CAM",
        "Where a layer's features speak for the score, as coarse as the layer.",
        "Selvaraju 2017",
        signed=False,
        layer=True,
        each_channel=False,
    ),
    "guided-grad-cam": Method(
        "Guided Grad-CAM",
        "The detail of guided backpropagation, where Grad-CAM says that the layer speaks for the score.",
        "Selvaraju 2017",
        layer=True,
    ),
    "occlusion": Method(
        "Occlusion",
        "How much the score falls when a window of the image is covered.",
        "Zeiler 2014",
        differentiates=False,
        each_channel=False,
    ),
    "ablation-regions": Method(
        "Ablation of regions",
        "How much the score falls without each region of a label map.",
        "Zeiler 2014",
        differentiates=False,
        each_channel=False,
    ),
    "ablation-channels": Method(
        "Ablation of channels",
        "How much the score falls without each input channel, such as a sequence of an MRI.",
        "Zeiler 2014",
        differentiates=False,
    ),
    "ablation-features": Method(
        "Ablation of feature maps",
        "A layer's feature maps, each weighted by how much the score falls without it.",
        "Morcos 2018; Desai 2020",
        layer=True,
        differentiates=False,
        each_channel=False,
    ),
    "activations": Method(
        "Activation maps",
        "What a layer's feature maps answer to the image, one component each.",
        "Zeiler 2014",
        makes="maps",
        layer=True,
        target=False,
        differentiates=False,
        each_channel=False,
    ),
    "inversion": Method(
        "Inversion of a layer",
        "An image that the layer cannot tell from the given one: what is missing in it, the layer has forgotten.",
        "Mahendran 2015; Ulyanov 2018",
        makes="image",
        signed=False,
        layer=True,
        target=False,
    ),
    "deepdream": Method(
        "DeepDream",
        "The image changed until the layer, or one unit of it, answers more: what appears is what it looks for.",
        "Mordvintsev 2015",
        makes="image",
        signed=False,
        layer=True,
        target=False,
    ),
}

#: What `mli explain-check` tests: maps that need nothing but a target.
CHECKED = tuple(name for name, m in METHODS.items() if m.makes == "map" and not name.startswith("ablation"))
#: Of these, what it tests unless told otherwise: occlusion takes a while.
CHECKED_BY_DEFAULT = tuple(name for name in CHECKED if name != "occlusion")
