"""Edges of a model: scores, search, circuits and how faithful they are, paths."""

from interp.circuits.circuit import Circuit as Circuit
from interp.circuits.graph import Graph as Graph
