output "nodes" {
  description = "The nodes in rank order: name, id, address (public), private_address, port, user, gpus, type, zone, market."
  value = [
    for number in sort(keys(local.rank_order)) : {
      name            = local.rank_order[number]
      id              = module.nodes.nodes[local.rank_order[number]].id
      address         = module.nodes.nodes[local.rank_order[number]].address
      private_address = module.nodes.nodes[local.rank_order[number]].private_address
      port            = 22
      user            = var.user
      gpus            = var.gpus_per_node
      type            = var.instance_type
      zone            = module.nodes.nodes[local.rank_order[number]].zone
      market          = var.market
    }
  ]
}
