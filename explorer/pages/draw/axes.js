// The axes of a scatter, and the lines over its points. `area` is the rectangle {x, y, width, height} of
// the points.

import { words } from "../format.js";
import { themed } from "./colours.js";

// Grid, ticks and names of both axes.
export function paintAxes(context, area, axes, spec) {
  const [ink, soft, line] = [themed("--ink"), themed("--soft"), themed("--line")];
  context.font = "11px system-ui, sans-serif";
  context.lineWidth = 1;
  for (const tick of axes.x.ticks(Math.max(2, area.width / 80))) {
    const x = Math.round(area.x + axes.x.to(tick.at) * area.width) + 0.5;
    context.strokeStyle = line;
    context.beginPath();
    context.moveTo(x, area.y);
    context.lineTo(x, area.y + area.height);
    context.stroke();
    context.fillStyle = soft;
    context.textAlign = "center";
    context.fillText(tick.text, x, area.y + area.height + 14);
  }
  for (const tick of axes.y.ticks(Math.max(2, area.height / 50))) {
    const y = Math.round(area.y + (1 - axes.y.to(tick.at)) * area.height) + 0.5;
    context.strokeStyle = line;
    context.beginPath();
    context.moveTo(area.x, y);
    context.lineTo(area.x + area.width, y);
    context.stroke();
    context.fillStyle = soft;
    context.textAlign = "right";
    context.fillText(tick.text, area.x - 6, y + 4);
  }
  context.fillStyle = ink;
  context.textAlign = "center";
  context.fillText(spec.x.text || words(spec.x.name), area.x + area.width / 2, area.y + area.height + 31);
  context.save();
  context.translate(11, area.y + area.height / 2);
  context.rotate(-Math.PI / 2);
  context.fillText(spec.y.text || words(spec.y.name), 0, 0);
  context.restore();
}

// The lines of a scatter's `spec`, with their texts, and the diagonal.
export function paintLines(context, area, axes, spec) {
  context.lineWidth = 1.5;
  context.font = "600 11px system-ui, sans-serif";
  const colour = themed("--ink");
  context.strokeStyle = colour;
  context.fillStyle = colour;
  for (const line of spec.lines || []) {
    const share = axes[line.axis].to(line.at);
    if (!(share >= 0 && share <= 1)) continue;
    context.setLineDash(line.dash || [5, 4]);
    context.beginPath();
    if (line.axis === "x") {
      const x = area.x + share * area.width;
      context.moveTo(x, area.y);
      context.lineTo(x, area.y + area.height);
      context.textAlign = "left";
      context.fillText(
        line.text,
        line.low ? x - 11 : x + 4,
        line.low ? area.y + area.height - 5 : area.y + 11,
      );
    } else {
      const y = area.y + (1 - share) * area.height;
      context.moveTo(area.x, y);
      context.lineTo(area.x + area.width, y);
      context.textAlign = line.low ? "left" : "right";
      context.fillText(line.text, line.low ? area.x + 5 : area.x + area.width - 4, line.low ? y + 12 : y - 4);
    }
    context.stroke();
  }
  if (spec.diagonal) {
    context.setLineDash([2, 4]);
    context.strokeStyle = themed("--edge");
    context.beginPath();
    context.moveTo(area.x, area.y + area.height);
    context.lineTo(area.x + area.width, area.y);
    context.stroke();
  }
  context.setLineDash([]);
}
