# A cluster on this machine, of Terraform's built-in terraform_data alone: nothing is downloaded.
module "node" {
  source   = "../../modules/local_node"
  for_each = var.nodes

  cluster = var.cluster
  name    = each.key
  address = each.value.address
  port    = each.value.port
  gpus    = each.value.gpus
  user    = var.user
  root    = var.root
  ssh_dir = var.ssh_dir
  python  = var.python
  max_s   = var.max_s
  lease_s = var.lease_s
  idle_s  = var.idle_s
}

locals {
  # Terraform orders keys as text, n10 before n2; rank order is by number.
  rank_order = { for name in keys(var.nodes) : format("%04d", tonumber(trimprefix(name, "n"))) => name }
}
