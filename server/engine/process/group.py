"""The process group of the template and of the engines that are forked from it; importing this module makes it.

The template imports this first of all. Ctrl-C in a terminal goes to the group of the server alone, which ends this one
when it ends itself, with every engine in it.
"""

from __future__ import annotations

import os

os.setpgid(0, 0)
