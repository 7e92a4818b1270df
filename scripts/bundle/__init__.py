# SPDX-License-Identifier: Apache-2.0
"""The build for a machine without a network: wheels, sums, an SBOM and what installs it."""
