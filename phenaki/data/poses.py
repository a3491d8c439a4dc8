"""Where everything is in each frame: the motions of actors, and the moves of the camera.

Positions are shares of the picture, x from its left and y from its top; a track has one entry a frame. Plain numpy in float64:
steps are whole pixels a frame at size 64 and 8 fps, so that equal scenes give equal pixels.
"""

from dataclasses import dataclass, replace

import numpy as np

from phenaki.data.cast import object_scale, role_of, stands_behind
from phenaki.data.world import SceneTruth, StoryTruth

FEET = 42 / 96  # of the art's sprites, below their middles, as a share of their side
WALK = 0.125  # pictures a second: 1 pixel a frame at size 64 and 8 fps
OUTSIDE = 0.25  # how far beyond the picture's edge an actor's middle goes
RISE, FALL = 0.25, 0.5  # pictures a second
FALL_FROM, FALL_SECONDS = -0.125, 1.75  # where a fall begins: partly in sight; from one fall to the next
PAN, PAN_REACH = 0.0625, 0.125  # pictures a second, and how far to each side
ZOOM, CLOSEST = 0.04, 0.8  # a second, and the smallest share of the picture that is seen

# Seats in a story whose actor starts on the left; mirrored where it starts on the right. Lines where feet stand.
COMPANION_X, COMPANION_FEET, COMPANION_SCALE = 0.8, 0.83, 0.8
BEHIND_X, BEHIND_FEET = 0.84, 0.8
FRONT_X, FRONT_FEET = 0.12, 0.97


@dataclass(frozen=True)
class Track:
    """An actor in each of n frames: x, y of its middle, scale, angle in radians, all (n,) float64; flip (n,) bool: mirrored."""

    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    angle: np.ndarray
    flip: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, frames) -> "Track":
        """Some of the frames: a slice, indices or a mask."""
        return Track(self.x[frames], self.y[frames], self.scale[frames], self.angle[frames], self.flip[frames])


@dataclass(frozen=True)
class CameraTrack:
    """What the camera sees in each frame, (n,) float64: its shift to the right in pictures, and the share of the picture seen."""

    pan: np.ndarray
    zoom: np.ndarray


def joined(tracks: list[Track]) -> Track:
    """Tracks one after the other."""
    return Track(*(np.concatenate([getattr(track, name) for track in tracks]) for name in ("x", "y", "scale", "angle", "flip")))


def motion_track(motion: str, seconds: np.ndarray, x: float, baseline: float) -> Track:
    """Poses at `seconds` (n,) of a scene that began with the actor at `x`; walkers leave on one side and return on the other.

    Who flies up leaves at the top and takes off again; who falls comes down from there, lands, and comes down again.
    """
    still, one = np.zeros_like(seconds), np.ones_like(seconds)
    rest = Track(x + still, baseline + still, one, still, np.full(len(seconds), motion.endswith("right")))
    if motion in ("walks left", "runs left", "walks right", "runs right"):
        speed = WALK * (2 if motion.startswith("runs") else 1)
        return replace(rest, x=_wrapped(x + (speed if motion.endswith("right") else -speed) * seconds))
    if motion == "hops":
        return replace(rest, y=baseline - np.round(8 * np.abs(np.sin(np.pi * seconds))) / 32)
    if motion == "flies up":
        return replace(rest, y=baseline - RISE * seconds % (baseline + OUTSIDE))
    if motion == "falls":
        return replace(rest, y=np.minimum(FALL_FROM + FALL * (seconds % FALL_SECONDS), baseline))
    if motion == "spins":
        return replace(rest, angle=np.pi * seconds)
    if motion == "grows":
        return replace(rest, scale=np.minimum(1.0 + 0.2 * seconds, 1.8))
    if motion == "shrinks":
        return replace(rest, scale=np.maximum(1.0 - 0.15 * seconds, 0.4))
    if motion == "circles":
        return replace(rest, x=x + 0.12 * np.sin(np.pi * seconds), y=baseline - 0.12 * (1 - np.cos(np.pi * seconds)))
    return rest


def _wrapped(position: np.ndarray) -> np.ndarray:
    """Positions run from -OUTSIDE to 1 + OUTSIDE and start over."""
    return (position + OUTSIDE) % (1 + 2 * OUTSIDE) - OUTSIDE


def actor_track(story: StoryTruth, fps: float, actor_size: float, settle_seconds: float = 0.0) -> Track:
    """The actor in each frame of a story; a scene starts where the last one left the actor, well inside the picture.

    With `settle_seconds` an actor that was in the air, turned, grown or outside is moved back over that time, not at once,
    and a motion that is the same in the next scene continues. In another place neither happens: that is a cut.
    """
    x, begun, parts = story.start_x, 0.0, []  # begun: how long the motion has been going on
    previous: SceneTruth | None = None
    ended: Track | None = None  # where the last scene left the actor
    for scene in story.scenes:
        stays = previous is not None and ended is not None and settle_seconds > 0 and (previous.actor, previous.place) == (scene.actor, scene.place)
        goes_on = stays and previous.motion == scene.motion
        begun = begun if goes_on else 0.0
        start = x if goes_on else min(max(x, 0.125), 0.875)
        walks = scene.motion.split()[0] in ("walks", "runs")
        seconds = np.arange(scene.num_frames + 1) / fps  # with the frame after the scene, where the next one starts
        track = motion_track(scene.motion, seconds if walks else seconds + begun, start, story.baseline)
        if stays and (goes_on or scene.motion != "falls"):  # who falls comes from above at once
            track = _settled(track, ended, seconds / settle_seconds)
        parts.append(_in_role(track[:-1], scene.actor, scene.motion, actor_size))
        ended, previous = track[-1:], scene
        x, begun = float(track.x[-1]) if walks else start, begun + scene.num_frames / fps
    return joined(parts)


def _settled(track: Track, ended: Track, progress: np.ndarray) -> Track:
    """A track that begins where the one before it `ended` (one frame), and is itself where progress (n,) is 1 or more."""
    fade = np.maximum(1 - progress, 0.0)
    turned = (ended.angle - track.angle[0] + np.pi) % (2 * np.pi) - np.pi  # the short way back
    return replace(
        track,
        x=track.x + (ended.x - track.x[0]) * fade,
        y=track.y + (ended.y - track.y[0]) * fade,
        scale=track.scale * (ended.scale / track.scale[0]) ** fade,
        angle=track.angle + turned * fade,
    )


def _in_role(track: Track, actor: str, motion: str, actor_size: float) -> Track:
    """A track as this actor plays it: at its size, feet where they were, hovering and looking its own way."""
    role = role_of(actor)
    scale = track.scale * role.scale
    y = track.y + FEET * actor_size * (1 - scale) - role.lift
    return replace(track, y=y, scale=scale, flip=np.full(len(track), motion.endswith("left" if role.faces_right else "right")))


def _seated(count: int, x: float, feet: float, scale: float, actor_size: float, flip: bool = False) -> Track:
    fill = np.ones(count)
    return Track(x * fill, (feet - FEET * actor_size * scale) * fill, scale * fill, 0 * fill, np.full(count, flip))


def companion_track(story: StoryTruth, actor_size: float) -> Track:
    """The second actors, who stand all story long on the side where the actor did not start, and look to the middle."""
    on_right = story.start_x <= 0.5
    x = COMPANION_X if on_right else 1 - COMPANION_X
    parts = []
    for scene in story.scenes:
        role = role_of(scene.companion)
        feet, scale = COMPANION_FEET - role.lift, COMPANION_SCALE * role.scale
        parts.append(_seated(scene.num_frames, x, feet, scale, actor_size, flip=role.faces_right == on_right))
    return joined(parts)


def object_track(story: StoryTruth, actor_size: float) -> Track:
    """The objects: small ones lie in front, on the side where the actor started; large ones stand behind, on the other side."""
    parts = []
    for scene in story.scenes:
        x, feet = (BEHIND_X, BEHIND_FEET) if stands_behind(scene.object) else (FRONT_X, FRONT_FEET)
        x = x if story.start_x <= 0.5 else 1 - x
        parts.append(_seated(scene.num_frames, x, feet, object_scale(scene.object), actor_size))
    return joined(parts)


def camera_track(stories: list[StoryTruth], fps: float) -> CameraTrack:
    """Story after story: pans run to and fro at one speed, zooms come closer and stay, a still camera stays as it is.

    A new place is seen afresh.
    """
    pans, zooms = [], []
    for story in stories:
        panned, zoomed, place = 0.0, 0.0, ""  # seconds so far
        for scene in story.scenes:
            if scene.place != place:
                panned, zoomed, place = 0.0, 0.0, scene.place
            seconds, still = np.arange(scene.num_frames + 1) / fps, np.zeros(scene.num_frames + 1)
            pan_seconds, zoom_seconds = (begun + (seconds if scene.camera == move else still) for begun, move in ((panned, "pan"), (zoomed, "zoom")))
            pans.append(_to_and_fro(PAN * pan_seconds[:-1], PAN_REACH))
            zooms.append(np.maximum(1 - ZOOM * zoom_seconds[:-1], CLOSEST))
            panned, zoomed = float(pan_seconds[-1]), float(zoom_seconds[-1])
    return CameraTrack(np.concatenate(pans), np.concatenate(zooms))


def _to_and_fro(way: np.ndarray, reach: float) -> np.ndarray:
    """A triangle wave: 0 at 0, then up to reach, down to -reach and so on, at one speed."""
    return reach - np.abs((way + reach) % (4 * reach) - 2 * reach)


def seen_by(camera: CameraTrack, track: Track) -> Track:
    """A track of the world as the camera shows it."""
    x = (track.x - 0.5 - camera.pan) / camera.zoom + 0.5
    y = (track.y - 0.5) / camera.zoom + 0.5
    return replace(track, x=x, y=y, scale=track.scale / camera.zoom)
