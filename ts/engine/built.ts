import { fileURLToPath } from "node:url";

/**
 * Path of a file that the build leaves beside the bundles (`build/lib`): works from the sources as Node runs them, and
 * from a bundle.
 */
export function builtFile(name: string): string {
  const fromSources = import.meta.url.endsWith(".ts");
  return fileURLToPath(new URL(fromSources ? `../../build/lib/${name}` : name, import.meta.url));
}
