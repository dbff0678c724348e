"""The systems that pinstream is measured against. Each does the same job as far as it can.

What they lack is said where they are listed (`benchmarks.systems`). The Python ones share one conversion
(`conversion`), written plainly. FastStream and Quix Streams run in an environment of their own
(``.venv-bench``, `requirements.txt`), so that ``make setup`` need not install them; Benthos is built with Go.
"""
