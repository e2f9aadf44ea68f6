"""Records the guided base in the student's few steps, for prompts that were not recorded."""

from pipeline import artifacts
from pipeline.console import progress
from pipeline.params import Params
from pipeline.partition import Partition
from pipeline.recording import anchors, record, trajectories
from stages import stage_command


@stage_command("cache_anchors")
def main(params: Params) -> None:
    """Writes the anchors in the layout of the trajectories; without anchors, writes only an index."""
    if params.anchors.prompts == 0:
        trajectories.write_none(artifacts.ANCHORS)
        return
    partition = Partition.from_json(artifacts.read_json(artifacts.PARTITION))
    record.cache(
        params,
        lambda backbone: anchors.recording(params, partition, backbone.words()),
        artifacts.ANCHORS,
        progress,
    )


if __name__ == "__main__":
    main()
