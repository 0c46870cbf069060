"""Streams safetensors from a bucket into memory by Run:ai's model streamer: runai_get.py URL..."""

import sys

from runai_model_streamer import SafetensorsStreamer


def main():
    seen = 0
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(sys.argv[1:])
        for _, tensor in streamer.get_tensors():
            seen += tensor.nbytes
    print(seen)


main()
