output "node" {
  description = "How the node is reached, once it is on."
  value = {
    name    = var.name
    address = var.address
    port    = var.port
    user    = var.user
    gpus    = var.gpus
    home    = "${var.root}/${var.name}/home"
  }
  depends_on = [terraform_data.node]
}
