"""Two classes of prompts: directions between them, probes, steering."""

from interp.directions.steering import Direction as Direction
from interp.directions.steering import steer as steer
