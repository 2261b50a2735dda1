"""The sample data of each module load without a download, from the Sample Data module and by a script."""

import numpy as np
import slicer
from selftests import file_of, loaded


def test_the_sample_of_a_lesion(standin):
    """As the button of that module does it; the lesion is where the volume is brighter than the normal ones."""
    import SampleData

    with loaded(standin, file_of("AnomalyGAN")) as code:
        code.registerSampleData()
        source = SampleData.SampleDataLogic().sourceForSampleName("MNI152 hippocampi, one with a lesion")
        sample = source.customDownloader(source)
        assert len(sample.normals) == 8
        voxels = slicer.util.arrayFromVolume(sample.volume)
        segment = sample.lesion.GetSegmentation().GetNthSegmentID(0)
        inside = slicer.util.arrayFromSegmentBinaryLabelmap(sample.lesion, segment, sample.volume) > 0
        normal = np.mean([slicer.util.arrayFromVolume(one) for one in sample.normals], axis=0)
        assert (voxels - normal)[inside].mean() > 50
        assert abs((voxels - normal)[~inside].mean()) < 10


def test_the_sample_of_a_point_to_explain(standin):
    """As the button of that module does it, which calls the source's own function."""
    import SampleData

    with loaded(standin, file_of("Explainability")) as code:
        code.registerSampleData()
        logic = SampleData.SampleDataLogic()
        source = logic.sourceForSampleName("MNI152 hippocampus, a point to explain")
        volume, point = source.customDownloader(source)
        assert volume.GetImageData().GetDimensions() == (35, 47, 48)
        place = [0.0, 0.0, 0.0]
        point.GetNthControlPointPositionWorld(0, place)
        assert place == [28.0, -16.0, -19.0]
        slicer.mrmlScene.Clear()
        assert SampleData.downloadSample("MNI152 hippocampus, a point to explain").IsA("vtkMRMLScalarVolumeNode")


def test_the_samples_of_atlases_and_raters(standin):
    """As the buttons of that module do it, which call the source's own function."""
    import SampleData

    from MLISlicerLib import fusion_atlases, fusion_sample

    with loaded(standin, file_of("AtlasFusion")) as code:
        code.registerSampleData()
        logic = SampleData.SampleDataLogic()
        for name in ("MNI152 hippocampus atlases", "MNI152 hippocampus raters"):
            slicer.mrmlScene.Clear()
            source = logic.sourceForSampleName(name)
            sample = source.customDownloader(source)
            assert len(sample.atlases or sample.raters) == fusion_sample.COUNT
            assert sample.volume.GetImageData().GetDimensions() == (35, 47, 48)
        slicer.mrmlScene.Clear()
        sample = code.loadAtlases()
        assert fusion_atlases.folders()[sample.folder] == "Atlases (5 atlases)"
        slicer.mrmlScene.Clear()
        nodes = SampleData.downloadSamples("MNI152 hippocampus raters")  # a script gets the files
        assert [node.GetClassName() for node in nodes] == ["vtkMRMLScalarVolumeNode", "vtkMRMLSegmentationNode"]


def test_the_sample_pair(standin):
    import SampleData

    slicer.mrmlScene.Clear()
    with loaded(standin, file_of("Registration")) as code:
        code.registerSampleData()
        fixed, moving, fixedPoints, movingPoints = SampleData.downloadSamples("MNI152 right hippocampus, moved")
        assert fixed.GetImageData() is not None
        assert moving.GetImageData() is not None
        assert fixedPoints.GetNumberOfControlPoints() == movingPoints.GetNumberOfControlPoints() == 8


def test_the_sample_images(standin):
    import SampleData

    slicer.mrmlScene.Clear()
    with loaded(standin, file_of("Segmentation")) as code:
        code.registerSampleData()
        for side in ("left", "right"):
            volume = SampleData.downloadSample(f"MNI152 {side} hippocampus")
            assert volume.GetImageData() is not None
