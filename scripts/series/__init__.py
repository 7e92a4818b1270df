# SPDX-License-Identifier: Apache-2.0
"""The tool that keeps a series of patches on a pinned upstream."""
