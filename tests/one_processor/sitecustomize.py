"""Python imports this at its start where PYTHONPATH names this folder: commands of the tests count one processor.

On a CPU nnU-Net takes as many threads as there are processors, whatever the environment says. Two commands at a time
then wait for each other's threads, for several times as long as they compute; and other threads sum in another order.
"""

import multiprocessing

multiprocessing.cpu_count = lambda: 1
