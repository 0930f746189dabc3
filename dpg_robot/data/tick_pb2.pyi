from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoopState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IDLE: _ClassVar[LoopState]
    HOMING: _ClassVar[LoopState]
    RUNNING: _ClassVar[LoopState]
    STOPPING: _ClassVar[LoopState]
    FAULT: _ClassVar[LoopState]
    SHADOW: _ClassVar[LoopState]

class EpisodeEnd(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOT_ENDED: _ClassVar[EpisodeEnd]
    TIMEOUT: _ClassVar[EpisodeEnd]
    TERMINAL: _ClassVar[EpisodeEnd]
    ABORTED: _ClassVar[EpisodeEnd]
IDLE: LoopState
HOMING: LoopState
RUNNING: LoopState
STOPPING: LoopState
FAULT: LoopState
SHADOW: LoopState
NOT_ENDED: EpisodeEnd
TIMEOUT: EpisodeEnd
TERMINAL: EpisodeEnd
ABORTED: EpisodeEnd

class Tick(_message.Message):
    __slots__ = ("run_id", "sequence", "period", "episode", "step", "state", "episode_end", "safety", "device_flags", "policy", "time_ns", "wall_ns", "device_time_ns", "wakeup_latency_ns", "compute_ns", "measurement", "measurement_time_ns", "valid", "intended_action", "action", "command", "record_crc32")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EPISODE_END_FIELD_NUMBER: _ClassVar[int]
    SAFETY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FLAGS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    WALL_NS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    WAKEUP_LATENCY_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NS_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENT_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENT_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    VALID_FIELD_NUMBER: _ClassVar[int]
    INTENDED_ACTION_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    RECORD_CRC32_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    sequence: int
    period: int
    episode: int
    step: int
    state: LoopState
    episode_end: EpisodeEnd
    safety: int
    device_flags: int
    policy: int
    time_ns: int
    wall_ns: int
    device_time_ns: int
    wakeup_latency_ns: int
    compute_ns: int
    measurement: _containers.RepeatedScalarFieldContainer[float]
    measurement_time_ns: _containers.RepeatedScalarFieldContainer[int]
    valid: _containers.RepeatedScalarFieldContainer[bool]
    intended_action: _containers.RepeatedScalarFieldContainer[float]
    action: _containers.RepeatedScalarFieldContainer[float]
    command: _containers.RepeatedScalarFieldContainer[float]
    record_crc32: int
    def __init__(self, run_id: _Optional[str] = ..., sequence: _Optional[int] = ..., period: _Optional[int] = ..., episode: _Optional[int] = ..., step: _Optional[int] = ..., state: _Optional[_Union[LoopState, str]] = ..., episode_end: _Optional[_Union[EpisodeEnd, str]] = ..., safety: _Optional[int] = ..., device_flags: _Optional[int] = ..., policy: _Optional[int] = ..., time_ns: _Optional[int] = ..., wall_ns: _Optional[int] = ..., device_time_ns: _Optional[int] = ..., wakeup_latency_ns: _Optional[int] = ..., compute_ns: _Optional[int] = ..., measurement: _Optional[_Iterable[float]] = ..., measurement_time_ns: _Optional[_Iterable[int]] = ..., valid: _Optional[_Iterable[bool]] = ..., intended_action: _Optional[_Iterable[float]] = ..., action: _Optional[_Iterable[float]] = ..., command: _Optional[_Iterable[float]] = ..., record_crc32: _Optional[int] = ...) -> None: ...
