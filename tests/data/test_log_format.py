import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from mcap.reader import make_reader

from dpg_robot.data import tick_pb2
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.transition import EpisodeEnd, LoopState


@pytest.fixture
def segment(sample, tmp_path):
    with LogWriter(tmp_path, "run", sample.CONTRACT) as writer:
        writer.append(sample.make_records(0, 200))
    return tmp_path / "run" / "segment-000000.mcap"


def test_the_official_reader_decodes_a_segment_with_the_schema_inside_it(sample, segment):
    with segment.open("rb") as file:
        messages = list(make_reader(file, validate_crcs=True).iter_messages("/robot/tick"))
    schema, channel, _ = messages[0]
    assert (schema.name, schema.encoding, channel.message_encoding) == ("dpg_robot.Tick", "protobuf", "protobuf")
    pool = descriptor_pool.DescriptorPool()
    for file_descriptor in descriptor_pb2.FileDescriptorSet.FromString(schema.data).file:
        pool.Add(file_descriptor)
    tick_class = message_factory.GetMessageClass(pool.FindMessageTypeByName(schema.name))

    records = sample.make_records(0, 200)
    assert len(messages) == 200
    for (_, _, message), record in zip(messages, records, strict=True):
        tick = tick_class.FromString(message.data)
        assert tick.run_id == "run"
        assert message.sequence == record["sequence"]
        assert message.log_time == message.publish_time == record["wall_ns"]
        for name in records.dtype.names:
            assert np.array_equal(getattr(tick, name), record[name]), name
    shown = json_format.MessageToDict(tick_class.FromString(messages[50][2].data))
    assert (shown["state"], shown["episodeEnd"]) == ("RUNNING", "TIMEOUT")


def test_the_summary_of_a_segment_serves_the_official_tools(segment):
    with segment.open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary.statistics.message_count == 200
    assert len(summary.chunk_indexes) == summary.statistics.chunk_count >= 1
    assert [channel.topic for channel in summary.channels.values()] == ["/robot/tick"]


def test_the_message_has_the_fields_of_the_record(sample):
    fields = [field.name for field in tick_pb2.Tick.DESCRIPTOR.fields]
    assert fields == ["run_id", *sample.DTYPE.names, "record_crc32"]


@pytest.mark.parametrize("enum", [LoopState, EpisodeEnd])
def test_the_names_in_the_log_are_those_of_the_program(enum):
    in_log = tick_pb2.DESCRIPTOR.enum_types_by_name[enum.__name__]
    assert {value.name: value.number for value in in_log.values} == {value.name: int(value) for value in enum}


def test_the_generated_module_is_up_to_date(request, tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc")
    name = "dpg_robot/data/tick.proto"
    made = tmp_path / "descriptors"
    assert protoc.main(["protoc", f"-I{request.config.rootpath}", f"--descriptor_set_out={made}", name]) == 0
    expected = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file[0]
    for field in expected.message_type[0].field:
        field.ClearField("json_name")  # protoc adds it to the set, not to the module
    present = descriptor_pb2.FileDescriptorProto.FromString(tick_pb2.DESCRIPTOR.serialized_pb)
    assert present == expected, f"generate the module again: {name} says how"
