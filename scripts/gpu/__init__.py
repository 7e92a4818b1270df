# SPDX-License-Identifier: Apache-2.0
"""The CUDA build on a GPU host that has no network."""
