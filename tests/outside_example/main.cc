// Reads a recipe with Shoal's library and prints what it asks for.
#include <iostream>

#include <ATen/ATen.h>

#include "core/random.h"
#include "core/recipe.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  auto recipe = shoal::LoadRecipe(argv[1], {"zero.stage=2"});
  if (!recipe.ok()) {
    std::cerr << recipe.status() << "\n";
    return 1;
  }
  at::Tensor numbers = at::empty({4});
  shoal::FillNormal(numbers, shoal::Philox(recipe->proto.run().seed()), 0, 1.0);
  std::cout << recipe->proto.run().name() << " zero.stage=" << recipe->proto.zero().stage()
            << " finite=" << numbers.isfinite().all().item<bool>() << "\n";
}
