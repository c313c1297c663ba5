"""What the experts that were not chosen would have said.

Shape legend: T tokens, E experts, K experts per token, H hidden size.
"""

import torch

from toolkit.moe.watch import Seen


def every_output(seen: Seen, rows: torch.Tensor, experts: int) -> torch.Tensor:
    """F [T, E, H]: every expert's unweighted output for the tokens `rows` [T]; what was computed already is reused."""
    index_TK, hidden_TH = seen.index_TK[rows], seen.hidden_TH[rows]
    F_TEH = hidden_TH.new_empty(len(rows), experts, seen.outputs_TKH.shape[-1])
    spread = index_TK.unsqueeze(-1).expand(-1, -1, F_TEH.shape[-1])
    F_TEH.scatter_(1, spread, seen.outputs_TKH[rows].to(F_TEH.dtype))
    chosen_TE = torch.zeros(len(rows), experts, dtype=torch.bool, device=rows.device).scatter_(1, index_TK, True)
    for expert in range(experts):
        others = (~chosen_TE[:, expert]).nonzero().flatten()
        if len(others):
            F_TEH[others, expert] = seen.run_expert(hidden_TH[others], expert).to(F_TEH.dtype)
    return F_TEH
