import { readdirSync, realpathSync, statSync } from "node:fs";
import { join } from "node:path";

/** How the names of images end that are looked for in folders. */
const IMAGE = /\.a?vhd$/i;

/**
 * The images that paths name: files as they are, and whatever is called a VHD in folders and the folders below. Each file
 * once, whatever it is called. What doesn't exist is left for whoever opens it to say so.
 */
export function imagesIn(paths: readonly string[]): string[] {
  const seen = new Set<string>();
  const images: string[] = [];
  const add = (path: string) => {
    const real = realPathOf(path);
    if (!seen.has(real)) images.push(path);
    seen.add(real);
  };
  for (const path of paths) {
    if (isFolder(path)) for (const image of below(path)) add(image);
    else add(path);
  }
  return images;
}

function below(folder: string): string[] {
  const entries = readdirSync(folder, { withFileTypes: true }).sort((one, other) => (one.name < other.name ? -1 : 1));
  return entries.flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return below(path);
    // A link to a folder isn't followed: it may lead back.
    return IMAGE.test(entry.name) && !isFolder(path) ? [path] : [];
  });
}

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}

function realPathOf(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return path;
  }
}
