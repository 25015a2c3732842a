output "nodes" {
  description = "The nodes in rank order: name, address, port, user, gpus, home."
  value       = [for number in sort(keys(local.rank_order)) : module.node[local.rank_order[number]].node]
}
