"""Makes the module's sample data: both hippocampus regions of the MNI152 template, as they lie in the template.

Run as ``python demo/make_sample_data.py`` after a change of the regions; needs the package nilearn.
"""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk

import mni152

FOLDER = Path(__file__).resolve().parents[1] / "MLIModules" / "Segmentation" / "Resources" / "SampleData"


def main() -> None:
    """Write one NRRD file a side."""
    brain = mni152.template()
    for side in mni152.SIDES:
        path = FOLDER / f"MNI152_{side}_hippocampus_T1.nrrd"
        image = mni152.region(brain, side)
        for key in image.GetMetaDataKeys():
            image.EraseMetaData(key)
        sitk.WriteImage(image, str(path), useCompression=True)
        print(f"{path.name}: {' x '.join(map(str, image.GetSize()))} voxels, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
