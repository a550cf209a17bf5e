"""The pictures that parity looks at, and the mosaics made of them: once by the runtime, once a second way."""
