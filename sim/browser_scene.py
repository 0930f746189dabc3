"""The three-dimensional scene in the browser: all environments beside each other, as MuJoCo's own visualizer sees them."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, NamedTuple

import mujoco
import numpy as np
import trimesh
import viser
from numpy.typing import NDArray
from viser import transforms

from sim.environment import BatchEnvironment

_SPHERES = (mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_ELLIPSOID)
_BALL, _BOX, _CYLINDER = "ball", "box", "cylinder"
_PLANE_THICKNESS = 0.002
_LEVEL = 0.999  # upward part of a level plane's normal, at least
_GAMMA = 2.2  # the browser takes colours of instances as intensities of light, MuJoCo means what a screen shows
_FIELD_OF_VIEW = math.radians(45.0)


class _Instance(NamedTuple):
    """One piece to draw: a mesh, where, and how it looks."""

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]
    scale: tuple[float, float, float] | NDArray[np.float64]
    rgba: NDArray[np.float32]


class BrowserScene:
    """Shows N environments, each with the dynamics and shapes that were drawn for it.

    Environments stand beside each other. Where the model has a camera that tracks it, the robot travels, and the scene moves so
    that the followed environment stays in its place. Balls, boxes, cylinders, capsules, ellipsoids, meshes, walls and tendons are
    drawn; a level floor is a grid. Textures and height fields are not drawn.

    Args:
        server: of the page.
        environment: the environments, in their first states.

    Attributes:
        follow: number of the environment that stays in its place, or None.
        travels: whether following is of use.
    """

    def __init__(self, server: viser.ViserServer, environment: BatchEnvironment) -> None:
        self._server = server
        self._physics = environment.physics
        self._model = environment.physics.batch.get_model(0)
        self._data = mujoco.MjData(self._model)
        self._visual = mujoco.MjvScene(self._model, maxgeom=10_000)
        self._options = mujoco.MjvOption()
        self._handles: dict[str, viser.BatchedMeshHandle] = {}
        self._sent: dict[tuple[str, str], NDArray[Any]] = {}
        self._tracked_body = _tracked_body(self._model)
        self.travels = self._tracked_body is not None
        self.follow: int | None = 0 if self.travels else None
        server.scene.configure_environment_map(None)  # its light washes colours out, and it costs a machine without a GPU much
        server.scene.add_light_ambient("/light", intensity=1.2)
        low, high = self._bounds()
        self._cells = _cells(environment.num_envs, high - low, in_lanes=self.travels)
        self._section = 10.0 ** round(math.log10(max(high - low) / 3.0))  # of the floor's grid, m
        self._floor = self._add_floor(30.0 * max(high - low))
        several = environment.num_envs > 1
        self._labels = [
            server.scene.add_label(f"/labels/{index}", str(index)) for index in range(environment.num_envs) if several
        ]
        self._label_place = low
        self._place_camera(low, high)
        self.update()

    def update(self) -> None:
        """Bring the page to the present states of all environments."""
        shift = np.zeros(3)
        places = self._cells.copy()
        pieces: defaultdict[str, list[_Instance]] = defaultdict(list)
        for index, cell in enumerate(self._cells):
            self._load(index)
            if self._tracked_body is not None:
                places[index, :2] += self._data.subtree_com[self._tracked_body, :2]
            if index == self.follow:
                shift = places[index] - cell
            self._collect(cell, pieces)
        with self._server.atomic():
            for name, instances in pieces.items():
                self._draw(name, instances, shift)
            for name in self._handles.keys() - pieces.keys():
                self._handles[name].visible = False
            if self._floor is not None:
                self._floor.position = (*(-shift[:2] % self._section), self._floor.position[2])
            for label, place in zip(self._labels, places, strict=False):
                label.position = place - shift + self._label_place
        self._server.flush()

    def _load(self, index: int) -> None:
        self._physics.batch.get_model(index, self._model)
        self._physics.batch.get_data(index, self._data)
        mujoco.mj_fwdPosition(self._model, self._data)

    def _collect(self, cell: NDArray[np.float64], pieces: defaultdict[str, list[_Instance]]) -> None:
        """Add what MuJoCo would draw of the loaded environment to ``pieces``, by mesh."""
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, self._data, self._options, None, mujoco.MjvCamera(), everything, self._visual)
        for index in range(self._visual.ngeom):
            geom = self._visual.geoms[index]
            # copies, because the next environment is written to the same place
            rgba, size, rotation = geom.rgba.copy(), geom.size.copy(), geom.mat.copy()
            position = geom.pos + cell
            if geom.type in _SPHERES:
                pieces[_BALL].append(_Instance(position, rotation, size, rgba))
            elif geom.type == mujoco.mjtGeom.mjGEOM_BOX:
                pieces[_BOX].append(_Instance(position, rotation, size, rgba))
            elif geom.type == mujoco.mjtGeom.mjGEOM_CYLINDER:
                pieces[_CYLINDER].append(_Instance(position, rotation, size, rgba))
            elif geom.type == mujoco.mjtGeom.mjGEOM_CAPSULE:
                radius, half_length = float(size[0]), float(size[2])
                pieces[_CYLINDER].append(_Instance(position, rotation, size, rgba))
                for end in (-half_length, half_length):
                    pieces[_BALL].append(_Instance(position + end * rotation[:, 2], rotation, (radius,) * 3, rgba))
            elif geom.type == mujoco.mjtGeom.mjGEOM_PLANE and not _is_level(rotation) and size[0] > 0 and size[1] > 0:
                scale = (float(size[0]), float(size[1]), _PLANE_THICKNESS)
                pieces[_BOX].append(_Instance(position, rotation, scale, rgba))
            elif geom.type == mujoco.mjtGeom.mjGEOM_MESH:
                pieces[f"mesh_{geom.dataid // 2}"].append(_Instance(position, rotation, (1.0, 1.0, 1.0), rgba))

    def _draw(self, name: str, instances: list[_Instance], shift: NDArray[np.float64]) -> None:
        """Show all ``instances`` of one mesh, sending only what changed."""
        rgba = np.array([instance.rgba for instance in instances])
        values: dict[str, Any] = {
            "batched_positions": (np.array([item.position for item in instances]) - shift).astype(np.float32),
            "batched_wxyzs": transforms.SO3.from_matrix(np.array([item.rotation for item in instances])).wxyz.astype(np.float32),
            "batched_scales": np.array([item.scale for item in instances], dtype=np.float32),
            "batched_colors": (255 * rgba[:, :3].clip(0, 1) ** _GAMMA).astype(np.uint8),
            "batched_opacities": rgba[:, 3].astype(np.float32),
        }
        handle = self._handles.get(name)
        if handle is None:
            vertices, faces = self._mesh(name)
            opaque = bool((rgba[:, 3] == 1).all())
            self._handles[name] = self._server.scene.add_batched_meshes_simple(
                f"/models/{name}", vertices, faces, lod="off", **(values | ({"batched_opacities": None} if opaque else {}))
            )
        else:
            handle.visible = True
            for field, value in values.items():
                if not np.array_equal(value, self._sent[name, field]):
                    setattr(handle, field, value)
        self._sent |= {(name, field): value for field, value in values.items()}

    def _mesh(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return vertices and faces of a mesh by its name; basic shapes have a radius or half a side of 1."""
        if name == _BALL:
            mesh = trimesh.creation.icosphere(subdivisions=3)
        elif name == _BOX:
            mesh = trimesh.creation.box(extents=(2.0, 2.0, 2.0))
            mesh.unmerge_vertices()  # sharp edges
        elif name == _CYLINDER:
            mesh = trimesh.creation.cylinder(radius=1.0, height=2.0, sections=32)
            mesh = trimesh.graph.smooth_shade(mesh, angle=math.radians(30.0))  # a sharp rim
        else:
            which = int(name.removeprefix("mesh_"))
            first, count = self._model.mesh_vertadr[which], self._model.mesh_vertnum[which]
            first_face, count_faces = self._model.mesh_faceadr[which], self._model.mesh_facenum[which]
            return (
                self._model.mesh_vert[first : first + count].astype(np.float64),
                self._model.mesh_face[first_face : first_face + count_faces].astype(np.int64),
            )
        return np.asarray(mesh.vertices), np.asarray(mesh.faces)

    def _bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the corners (3,), (3,) of a box around the model in all first states, with walls but without the floor."""
        model, data = self._model, self._data
        plane = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
        half_size = np.where(plane[:, None], model.geom_size * [1, 1, 0], model.geom_aabb[:, 3:])
        lows, highs = [], []
        for index in range(self._physics.num_envs):
            self._load(index)
            rotation = data.geom_xmat.reshape(-1, 3, 3)
            middle = data.geom_xpos + np.einsum("gij,gj->gi", rotation, np.where(plane[:, None], 0.0, model.geom_aabb[:, :3]))
            half = np.einsum("gij,gj->gi", np.abs(rotation), half_size)
            bounded = ~plane | ((rotation[:, 2, 2] < _LEVEL) & (model.geom_size[:, :2] > 0).all(axis=1))
            lows.append((middle - half)[bounded].min(axis=0))
            highs.append((middle + half)[bounded].max(axis=0))
        return np.min(lows, axis=0), np.max(highs, axis=0)

    def _add_floor(self, fade_distance: float) -> viser.GridHandle | None:
        planes = np.flatnonzero(self._model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE)
        levels = [self._data.geom_xpos[geom, 2] for geom in planes if _is_level(self._data.geom_xmat[geom].reshape(3, 3))]
        if not levels:
            return None
        return self._server.scene.add_grid(
            "/floor",
            infinite_grid=True,
            cell_size=self._section / 2,
            section_size=self._section,
            cell_color=(225, 225, 230),
            section_color=(190, 195, 205),
            plane_color=(245, 246, 250),
            plane_opacity=1.0,
            fade_distance=fade_distance,
            position=(0.0, 0.0, float(min(levels))),
        )

    def _place_camera(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
        """Look at all environments from the side, or from above where the model is flat."""
        corners = np.array([self._cells.min(axis=0) + low, self._cells.max(axis=0) + high])
        if self.travels:
            corners[:, :2] -= (low[:2] + high[:2]) / 2
        middle, size = corners.mean(axis=0), high - low
        flat = size[2] < 0.15 * max(size[:2])
        direction = np.array([0.0, -0.35, 0.94]) if flat else np.array([0.2, -0.9, 0.4])
        distance = 0.58 * float(np.linalg.norm(corners[1] - corners[0])) / math.tan(_FIELD_OF_VIEW / 2)
        camera = self._server.initial_camera
        camera.fov = _FIELD_OF_VIEW
        camera.look_at = middle
        camera.position = middle + distance * direction / np.linalg.norm(direction)


def _tracked_body(model: mujoco.MjModel) -> int | None:
    """Return the body that a camera of the model tracks, if the robot can travel: its root slides or is free."""
    tracking = {int(mujoco.mjtCamLight.mjCAMLIGHT_TRACK), int(mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM)}
    travelling = {int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_SLIDE)}
    for mode, place in zip(model.cam_mode.tolist(), model.cam_bodyid.tolist(), strict=True):
        body = max(int(place), 1)  # a camera of the world tracks everything, so the robot
        joints = model.jnt_type[model.jnt_bodyid == model.body_rootid[body]]
        if mode in tracking and travelling.intersection(joints.tolist()):
            return body
    return None


def _is_level(rotation: NDArray[np.float64]) -> bool:
    return bool(rotation[2, 2] > _LEVEL)


def _cells(count: int, size: NDArray[np.float64], in_lanes: bool) -> NDArray[np.float64]:
    """Return the places (count, 3) of environments of a ``size`` (3,): one lane each, or a nearly square grid."""
    spacing = np.maximum(1.25 * size[:2], 0.6 * size.max())
    columns = 1 if in_lanes else math.ceil(math.sqrt(count))
    row, column = np.divmod(np.arange(count), columns)
    places = np.zeros((count, 3))
    places[:, 0] = (column - (columns - 1) / 2) * spacing[0]
    places[:, 1] = -(row - row.max() / 2) * spacing[1]
    return places
