"""Reading the annotation files of public benchmarks as they are published; no video is opened here."""
