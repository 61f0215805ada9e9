"""Sound as arrays: files, spectrograms, long signals and measures.

Modules:
    audio: read audio files of any kind, whole or block by block.
    resampling: change the sample rate, whole or block by block.
    write: quantize samples and write audio files.
    files: list the audio files that the inputs of a command stand for.
    stft: short-time Fourier transform and its inverse.
    streaming: overlap-add, for signals longer than a model's window.
    metrics: SI-SDR, SNR and their improvements, in dB.
    bss_eval: SDR, SIR, SAR of BSS-eval version 3, sources and images, in dB.
    levinson: the block-Toeplitz systems that BSS-eval solves.
    stems: stems as a set: permutation, silence, spectral overlap.
"""
