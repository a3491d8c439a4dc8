"""Makes a long video through the real file writer and samples the resident set: does it grow with the length?

    python tools/measure_hour.py -o docs/results/hour.json                          # the default model: hours on a CPU
    python tools/measure_hour.py --minutes 5 -o hour.json                           # a part of it
    python tools/measure_hour.py --random-weights configs/tiny.toml -o hour.json    # the whole hour in minutes

A new prompt every four seconds (--scenes many) or one held (--scenes one), two rounds a chunk, guidance off. A child process
makes the video, as `phenaki generate` does; its resident set is read after every chunk. Of each minute of video the highest is kept.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import sys
import tempfile
import time
from pathlib import Path

import torch

import phenaki.recording
from phenaki.checkpoint import Model, ModelInfo
from phenaki.cvivit import CViViT
from phenaki.maskgit import MaskGIT
from phenaki.pipeline import Phenaki, choose_device
from phenaki.planning import plan_figures
from phenaki.story import Story
from phenaki.text import TextEncoder
from phenaki.training.settings import load_settings
from phenaki.video import VideoWriter
